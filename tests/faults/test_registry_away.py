"""MLflow's server is killed, its replies are lost, its PostgreSQL restarts: each acknowledged write exists exactly once."""

from __future__ import annotations

import contextlib
import queue
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from remint.errors import IntegrityError, LedgerError, TrackingError
from remint.records import TrainedModel
from remint.runtime import manifest
from remint.stores.ledger.chain import Ledger
from remint.stores.mlflow import Tracking, VersionTags, door, registration
from tests.support import registry_cases as cases
from tests.support.mlflow_server import Server, lossy_proxy, run_server
from tests.support.postgres import Postgres
from tests.support.trials import Trials

PATIENCE = 10.0  # seconds of an outage that end no training
WRITES = 10  # counted writes of one trial: a version, tags, metrics, an alias


@pytest.fixture
def server(empty: Path, tmp_path: Path) -> Iterator[Server]:
    shutil.copytree(empty, tmp_path / "served")
    with run_server(tmp_path / "served") as started:
        yield started


@pytest.fixture
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halve the seconds that MLflow's client waits before a retry: enough for a server on this machine."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0.5")


def with_other_seed(small_bundle: Path, to: Path, seed: int) -> Path:
    """Copy the bundle with another seed in its recipe, and so another key."""
    shutil.copytree(small_bundle, to)
    trained = TrainedModel.read(to / "training.json")
    recipe = {**trained.recipe, "training": {**trained.recipe["training"], "seed": seed}}
    trained.model_copy(update={"recipe": recipe}).write(to / "training.json")
    manifest.seal(to)
    return to


def client(store: Tracking) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(store.uri)


def until_acknowledged(write: Callable[[], Any], failures: list[str] | None = None) -> Any:
    """Repeat a failed write, like a flow and its next run. Return its result: then the write is acknowledged."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return write()
        except (TrackingError, LedgerError) as error:
            assert time.monotonic() < deadline, f"it never succeeded: {error}"
            if failures is not None:
                failures.append(str(error))
        time.sleep(0.1)


class Writer(threading.Thread):
    """Thread that writes the records of one retraining to MLflow, and notes the acknowledged writes."""

    def __init__(self, store: Tracking, name: str, bundle: Path) -> None:
        super().__init__(daemon=True)
        self.store, self.model, self.bundle = store, name, bundle
        self.tags: dict[str, str] = {}
        self.steps: list[int] = []
        self.failures: list[str] = []  # of writes that a flow does not repeat: points of a curve, tags, an alias
        self.run_id = ""
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._write()
        except BaseException as error:  # the test raises it
            self.error = error

    def _write(self) -> None:
        store, trained = self.store, TrainedModel.read(self.bundle / "training.json")
        self.run_id = until_acknowledged(lambda: store.start_run(self.model, {"trial": self.model}, {"steps": 4}))
        for step in range(4):
            until_acknowledged(lambda at=step: store.log_metrics(self.run_id, [{"step": at, "loss": at / 8}]), self.failures)
            self.steps.append(step)
        version = until_acknowledged(
            lambda: store.register(self.bundle, trained, self.model, self.run_id, cases.TAGS, {}, lambda _: "not looked at")
        )
        for number in range(4):
            until_acknowledged(
                lambda tag=f"tag{number}": store.set_tags(version, VersionTags.model_validate({tag: "set"})), self.failures
            )
            self.tags[f"tag{number}"] = "set"
        until_acknowledged(lambda: store.set_alias(self.model, "champion", version.version), self.failures)

    def check(self, fetched: Path, away: float) -> dict[str, int]:
        """Wait for the end. Return the counts of lost and doubled writes. ``away``: seconds of the outage."""
        self.join(300)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        assert self.failures == [] or away > PATIENCE, "what went away for a moment ends no training"
        versions = self.store.versions(self.model)
        points = Counter(point.step for point in client(self.store).get_metric_history(self.run_id, "loss"))
        runs = client(self.store).search_runs([client(self.store).get_experiment_by_name(self.model).experiment_id])
        alias = self.store.aliases(self.model)
        assert versions[0].tags.to_json().items() >= {**self.tags, **cases.TAGS.to_json()}.items() and alias == {
            "champion": versions[0].version
        }
        self.store.fetch(versions[0], fetched)
        lost = (not versions) + len(set(self.steps) - set(points))
        doubled = len(versions) - 1 + sum(count - 1 for count in points.values())
        assert len({run.data.tags["remint.start"] for run in runs}) == len(runs), "no run was opened twice by one call"
        return {"acknowledged": WRITES, "lost": lost, "doubled": doubled}


@pytest.mark.case(11)
@pytest.mark.usefixtures("short_backoff")
def test_a_server_that_is_killed_loses_and_doubles_nothing(
    server: Server, small_bundle: Path, trials: Trials, tmp_path: Path
) -> None:
    store = Tracking(server.address, "", tmp_path / "locks" / "registry")
    for trial in trials(short=1, full=100):
        writer = Writer(
            store, f"killed-{trial.number}", with_other_seed(small_bundle, tmp_path / f"b{trial.number}", trial.number)
        )
        writer.start()
        time.sleep(trial.random.uniform(0.0, 1.5))
        server.kill()
        began = time.monotonic()
        time.sleep(trial.random.uniform(0.0, 0.3))
        server.start()
        server.wait()
        found = writer.check(tmp_path / "got" / str(trial.number), time.monotonic() - began)
        assert (found["lost"], found["doubled"]) == (0, 0)
        trial.note(kills=1, **found)


def test_a_server_killed_while_an_upload_is_checked_is_a_tracking_error(
    server: Server, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client then reports a missing file, which would be an error of the user with exit status 2."""
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    store, real = Tracking(server.address, "", tmp_path / "locks" / "registry"), HttpArtifactRepository.list_artifacts

    def away(repository: Any, path: str | None = None) -> Any:
        server.kill()
        return real(repository, path)

    with monkeypatch.context() as patch, pytest.raises(TrackingError, match="^MLflow could not upload digits-flow: "):
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setattr(HttpArtifactRepository, "list_artifacts", away)
        cases.register(store, small_bundle)
    server.start()
    server.wait()
    assert cases.register(store, small_bundle).version == 1


@pytest.mark.parametrize(
    ("target", "method", "server_returns"),
    [
        ("its bundle", "_download_file", False),
        pytest.param("its bundle", "_download_file", True, marks=pytest.mark.soak),
        pytest.param("a file beside it", "list_artifacts", False, marks=pytest.mark.soak),
        ("a file beside it", "list_artifacts", True),
    ],
)
def test_an_outage_of_the_store_is_not_reported_as_lost_files(
    server: Server,
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    method: str,
    server_returns: bool,
) -> None:
    """A lost champion cannot be compared, so its challenger is refused; after an outage the champion is back."""
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    store = Tracking(server.address, "", tmp_path / "locks" / "registry")
    (tmp_path / "decision.json").write_text("{}")
    version = cases.register(store, small_bundle)
    store.attach(version, {"decision.json": tmp_path / "decision.json"})
    real, kills = getattr(HttpArtifactRepository, method), iter([server.kill])

    def read() -> Path:
        if target == "its bundle":
            return store.fetch(version, tmp_path / "got")
        return store.attachment(version, "decision.json", tmp_path / "got")

    def away(repository: Any, *arguments: Any) -> Any:
        for kill in kills:  # the first call only
            kill()
            try:
                return real(repository, *arguments)
            finally:
                if server_returns:
                    server.start()
                    server.wait()
        return real(repository, *arguments)

    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7" if server_returns else "0")
        patch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
        patch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0.5")
        patch.setattr(HttpArtifactRepository, method, away)
        if server_returns:
            assert read().exists()
            shutil.rmtree(tmp_path / "got")
        else:
            with pytest.raises(TrackingError, match=f"^MLflow could not fetch .*{version.ref}: "):
                read()
            server.start()
            server.wait()
    assert read().exists()
    shutil.rmtree(tmp_path / "got", ignore_errors=True)
    shutil.rmtree(tmp_path / "served/files")
    with pytest.raises(IntegrityError, match=f"^{version.ref}: .* cannot be read: there are no files at mlflow-artifacts:"):
        read()


def test_a_truncated_reply_ends_no_training(server: Server, tmp_path: Path) -> None:
    """MLflow's client does not retry after the first line of a reply."""
    with lossy_proxy(server.port, 0.4, random.Random(0), cut=True) as proxy:
        store = Tracking(proxy.address, "", tmp_path / "locks" / "registry")
        run = store.start_run("digits-flow", {}, {})
        for step in range(20):
            store.log_metrics(run, [{"step": step, "loss": 1.0}])
        store.end_run(run, "FINISHED")
    points = client(Tracking(server.address, "", tmp_path / "locks" / "registry")).get_metric_history(run, "loss")
    assert sorted(point.step for point in points) == list(range(20)) and proxy.lost > 5


@pytest.mark.soak
@pytest.mark.case(12)
def test_half_of_all_replies_lost_double_no_version(
    server: Server, small_bundle: Path, trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial has twenty keys (four in the short form), four of them registered twice, and must make twenty versions."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0.02")
    direct = Tracking(server.address, "", tmp_path / "locks" / "registry")
    for trial in trials(short=1, full=25):
        name, count = f"lost-{trial.number}", 20 if trials.soak else 4
        with lossy_proxy(server.port, 0.5, random.Random(trial.random.random())) as proxy:
            store = Tracking(proxy.address, "", tmp_path / "locks" / "registry")
            bundles = [
                with_other_seed(small_bundle, tmp_path / name / str(seed), 1000 * trial.number + seed) for seed in range(count)
            ]
            todo: queue.SimpleQueue[Path] = queue.SimpleQueue()
            for bundle in trial.random.sample([*bundles, *bundles[:4]], count + 4):
                todo.put(bundle)
            answers = run_in_threads(4, partial(register_all, store, name, todo))
        versions = direct.versions(name)
        assert {ref for refs in answers for ref in refs} == {version.ref for version in versions}
        assert len({version.key for version in versions}) == len(versions) == count
        for version in versions:
            direct.fetch(version, tmp_path / "got" / version.key)
        trial.note(registrations=count + 4, keys=count, replies_lost=proxy.lost, versions=len(versions))


def register_all(store: Tracking, name: str, todo: queue.SimpleQueue[Path]) -> list[str]:
    refs = []
    with contextlib.suppress(queue.Empty):
        while True:
            bundle = todo.get_nowait()
            trained = TrainedModel.read(bundle / "training.json")
            version = until_acknowledged(
                lambda: store.register(bundle, trained, name, None, cases.TAGS, {}, lambda _: "not looked at")  # noqa: B023
            )
            refs.append(version.ref)
    return refs


def run_in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    answers: list[Any] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            answers.append(work())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers


@pytest.mark.case(13)
def test_postgres_that_restarts_loses_and_doubles_nothing(
    postgres: Postgres, small_bundle: Path, trials: Trials, tmp_path: Path
) -> None:
    """PostgreSQL stops at once, like by a power cut, while the ledger and MLflow write to it."""
    uri, url = postgres.database("mlflow13"), postgres.database("ledger13")
    store = Tracking(uri.replace("postgresql:", "postgresql+psycopg:"), str(tmp_path / "files"), tmp_path / "locks" / "registry")
    store.initialise()
    ledger = Ledger(url)
    for trial in trials(short=1, full=10):
        model = f"restarted-{trial.number}-{trial.random.randrange(10**6)}"
        writer = Writer(store, model, with_other_seed(small_bundle, tmp_path / f"b{trial.number}", trial.number))
        stop = threading.Event()
        rows: list[int] = []
        decide = threading.Thread(target=lambda: append_rows(ledger, model, rows, stop), daemon=True)  # noqa: B023
        writer.start()
        decide.start()
        time.sleep(trial.random.uniform(0.0, 1.5))
        began = time.monotonic()
        postgres.stop()
        time.sleep(trial.random.uniform(0.0, 0.3))
        postgres.start()
        found = writer.check(tmp_path / "got" / str(trial.number), time.monotonic() - began)
        stop.set()
        decide.join(60)
        kept = [row.version for row in ledger.rows(model)]
        assert (
            kept == rows == list(range(1, len(rows) + 1))
            and ledger.verify(model) == []
            and (found["lost"], found["doubled"]) == (0, 0)
        )
        trial.note(restarts=1, rows=len(rows), **found)


def append_rows(ledger: Ledger, model: str, rows: list[int], stop: threading.Event) -> None:
    """Append rows one by one. After an error the ledger's last row shows whether the row was written, as in the next run."""
    while not stop.is_set():
        texts = {"who": "w", "why": "", "evidence": ""}
        try:
            ledger.append(model, "refused", len(rows) + 1, champion_after=None, expected_champion=None, **texts)
        except LedgerError:
            last = until_acknowledged(lambda: ledger.last(model))
            if last is None or last.version != len(rows) + 1:
                continue
        rows.append(len(rows) + 1)
        time.sleep(0.005)


def test_two_hosts_without_a_lock_register_one_version(
    empty: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL loses its locks when it restarts. Here there are none: both hosts look for the version before one makes it."""
    shutil.copytree(empty, tmp_path / "home")
    store = cases.tracking(tmp_path / "home")
    store.initialise()
    cases.register(store, with_other_seed(small_bundle, tmp_path / "first", 1))  # creates the experiment and the model
    looked, real = threading.Barrier(2), registration.create_once

    def create(make: Any, find: Any) -> Any:
        if make.__qualname__.startswith("Tracking._make."):
            assert find() is None
            looked.wait(60)
        return real(make, find)

    monkeypatch.setattr(registration, "create_once", create)
    monkeypatch.setattr(Tracking, "exclusive_lock", lambda *_: contextlib.nullcontext())
    bundle = with_other_seed(small_bundle, tmp_path / "bundle", 2)
    versions = run_in_threads(2, lambda: cases.register(store, bundle))
    assert len({version.ref for version in versions}) == 1
    assert [version.version for version in store.versions("digits-flow")] == [2, 1]


def test_a_lost_lock_is_a_tracking_error(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.database("lock")
    inside = False
    with (
        pytest.raises(TrackingError, match="the lock on model m was lost"),
        door.exclusive_lock(tmp_path / "lock", "model m", url),
    ):
        inside = True
        postgres.stop()
        postgres.start()
    assert inside
    with door.exclusive_lock(tmp_path / "lock", "model m", url):
        pass
