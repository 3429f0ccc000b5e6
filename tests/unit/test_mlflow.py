"""The MLflow module on a real SQLite store: runs, versions without duplicates, aliases, and bundles fetched intact or refused."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from remint.errors import IntegrityError, NotFoundError, RunError, SettingsError, TrackingError
from remint.runtime import manifest
from remint.runtime.home import Home
from remint.runtime.yaml import load_safe_yaml
from remint.stores.mlflow import ModelVersion, Tracking, VersionTags, door, inventory, package
from remint.stores.open import open_tracking
from tests.support import registry_cases as cases


@pytest.fixture
def home(empty: Path, tmp_path: Path) -> Path:
    shutil.copytree(empty, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def store(home: Path) -> Tracking:
    return cases.tracking(home)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    cases.make_bundle(tmp_path / "trained" / "digits-flow")
    return tmp_path / "trained" / "digits-flow"


def client(store: Tracking) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(store.uri)


def test_importing_our_mlflow_module_imports_no_mlflow_and_disables_telemetry_and_pickles() -> None:
    names = "'MLFLOW_DISABLE_TELEMETRY', 'MLFLOW_ALLOW_PICKLE_DESERIALIZATION'"
    program = f"import os, sys, remint.stores.mlflow; print('mlflow' in sys.modules, *(os.environ[name] for name in ({names})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "true", "false"]
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()


def test_a_run_has_settings_curves_files_and_an_end_with_a_reason(store: Tracking, tmp_path: Path) -> None:
    run_id = store.start_run("digits-flow", {"job": "j1"}, {"training": {"steps": 3}, "family": "flow"})
    store.log_metrics(run_id, [{"step": step, "loss": 3.0 - step, "validation": 2.0} for step in range(1500)])
    (tmp_path / "grid.png").write_bytes(b"picture")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text("{}")
    store.log_file(run_id, tmp_path / "grid.png", "pictures/samples.png")
    store.log_file(run_id, tmp_path / "report")
    store.end_run(run_id, "FAILED", "no room")
    store.end_run(run_id, "FINISHED")  # the run is closed, so its end is kept
    run = client(store).get_run(run_id)
    assert (run.info.status, run.data.tags["mlflow.note.content"], run.data.tags["remint.job"]) == ("FAILED", "no room", "j1")
    assert run.data.params == {"training.steps": "3", "family": "flow"}
    history = client(store).get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 3.0 - step) for step in range(1500)]
    files = {item.path for folder in ("pictures", "report") for item in client(store).list_artifacts(run_id, folder)}
    assert files == {"pictures/samples.png", "report/report.json"}


def test_a_version_carries_its_lineage_and_closes_its_run(store: Tracking, bundle: Path, tmp_path: Path) -> None:
    trained = cases.make_bundle(tmp_path / "same")
    run_id = store.start_run("digits-flow", {}, {})
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    version = cases.register(
        store,
        bundle,
        run_id,
        tags=cases.TAGS.updated(VersionTags(reason="nightly")),
        attachments={"dvc.lock": tmp_path / "dvc.lock"},
    )
    assert (version.ref, version.key, version.run_id, version.dirty) == ("digits-flow/1", trained.key, run_id, False)
    assert (version.weights_sha256, version.dataset, version.commit) == (trained.weights_sha256, trained.dataset, "c" * 40)
    assert version.tags.settings == trained.recipe and version.tags.reason == "nightly"
    assert version.tags.manifest_sha256 == manifest.sha256_file(bundle / manifest.NAME)
    run = client(store).get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.tags["remint.version"] == "digits-flow/1"
    kept = Path(run.info.artifact_uri)
    assert (kept / "dvc.lock").read_text() == "schema: '2.0'\n"
    assert {path.suffix for path in (kept / "model").rglob("*") if path.is_file()} == {
        "",
        ".yaml",
        ".txt",
        ".json",
        ".csv",
        ".safetensors",
    }
    assert not [
        path for path in kept.rglob("*") if path.is_file() and b"\x80\x04\x95" in path.read_bytes()[:16]
    ]  # a pickle's first bytes


def test_a_killed_registration_is_completed_in_its_run_with_the_whole_curve(store: Tracking, bundle: Path) -> None:
    """The curve of the bundle has a row at step 1; the killed process had logged only step 0."""

    def dies(_back: Path) -> str:
        raise KeyboardInterrupt

    run_id = store.start_run("digits-flow", {}, {})
    store.log_metrics(run_id, [{"step": 0, "loss": 3.0}])
    with pytest.raises(KeyboardInterrupt):
        cases.register(store, bundle, run_id, verify=dies)
    store.end_run(run_id, "KILLED", "its process died")  # as the next job does
    version = cases.register(store, bundle)
    assert (version.ref, version.run_id) == ("digits-flow/1", run_id)
    run = client(store).get_run(run_id)
    assert (run.info.status, run.data.tags["mlflow.note.content"]) == ("FINISHED", "")
    history = client(store).get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 3.0), (1, 2.5)]
    assert len(client(store).search_runs([run.info.experiment_id])) == 1


def test_registering_the_same_weights_twice_gives_one_version_and_other_weights_another(
    store: Tracking, bundle: Path, tmp_path: Path
) -> None:
    first = cases.register(store, bundle)
    assert client(store).get_run(first.run_id).info.status == "FINISHED"  # opened only for the registration, and closed
    run_id = store.start_run("digits-flow", {}, {})
    again = cases.register(store, bundle, run_id)
    assert again == first and client(store).get_run(run_id).info.status == "FINISHED"
    cases.make_bundle(tmp_path / "other", seed=1)
    other = cases.register(store, tmp_path / "other")
    assert [version.version for version in store.versions("digits-flow")] == [other.version, first.version] == [2, 1]
    assert store.names() == ["digits-flow"]


def test_a_clean_commit_clears_the_uncommitted_mark_and_uncommitted_work_does_not_set_it(store: Tracking, bundle: Path) -> None:
    assert cases.register(store, bundle, tags=VersionTags(commit="dirty", dirty="true")).dirty
    clean = cases.register(store, bundle, tags=VersionTags(commit="clean", dirty="false"))
    assert (clean.version, clean.dirty, clean.commit) == (1, False, "clean")
    after = cases.register(store, bundle, tags=VersionTags(commit="dirty again", dirty="true"))
    assert (after.version, after.dirty, after.commit) == (1, False, "clean")


def test_a_damaged_bundle_is_not_registered(store: Tracking, bundle: Path, tmp_path: Path) -> None:
    other = cases.make_bundle(tmp_path / "other", seed=1)
    with pytest.raises(IntegrityError, match=r"does not match training.json"):
        store.register(bundle, other, "digits-flow", None, cases.TAGS, {}, str)
    weights = bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(IntegrityError, match=r"weights.safetensors is damaged"):
        cases.register(store, bundle)
    assert store.names() == []


def test_bytes_that_the_store_returns_changed_are_not_registered(
    store: Tracking, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    real = MlflowClient.log_artifacts

    def flips_a_bit(self: Any, run_id: str, folder: str, place: str) -> None:
        real(self, run_id, folder, place)
        weights = next(Path(self.get_run(run_id).info.artifact_uri).rglob("weights.safetensors"))
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)

    with monkeypatch.context() as patch, pytest.raises(IntegrityError, match="returned other bytes"):
        patch.setattr(MlflowClient, "log_artifacts", flips_a_bit)
        cases.register(store, bundle)
    assert store.names() == [] and store.close_stale() == []
    assert cases.register(store, bundle).version == 1


def test_a_missing_model_or_version_is_reported_with_the_existing_ones(store: Tracking, bundle: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing is registered yet"):
        store.version("digits-flow")
    cases.register(store, bundle)
    for ref, says in {
        "digits-flo": "did you mean 'digits-flow'",
        "digits-flow": "digits-flow has no champion and no other alias yet",
        "digits-flow/9": "has no version 9",
        "digits-flow/x": "has no version x",
        "it's": "unknown model",
    }.items():
        with pytest.raises(NotFoundError, match=says):
            store.version(ref)


def test_aliases_are_set_moved_and_deleted(store: Tracking, bundle: Path, tmp_path: Path) -> None:
    cases.register(store, bundle)
    cases.make_bundle(tmp_path / "other", seed=1)
    cases.register(store, tmp_path / "other")
    store.set_alias("digits-flow", "champion", 1)
    assert store.version("digits-flow") == store.version("digits-flow@champion") == store.version("digits-flow/1")
    assert store.version("digits-flow").aliases == ("champion",)
    store.set_alias("digits-flow", "champion", 2)
    store.set_alias("digits-flow", "challenger", 2)
    assert store.aliases("digits-flow") == {"champion": 2, "challenger": 2}
    assert [version.aliases for version in store.versions("digits-flow")] == [("challenger", "champion"), ()]
    assert cases.register(store, bundle).aliases == () and cases.register(store, tmp_path / "other").aliases == (
        "challenger",
        "champion",
    )
    with pytest.raises(NotFoundError, match="digits-flow has no chalenger, only challenger and champion; remint models"):
        store.version("digits-flow@chalenger")
    store.set_alias("digits-flow", "challenger", None)
    assert store.aliases("digits-flow") == {"champion": 2} and store.aliases("nobody") == {}
    assert [version.version for version in store.versions("digits-flow", newest=1)] == [2]
    store.set_alias("digits-flow", "champion", 1)  # older than the newest, but listed
    assert [(version.version, version.aliases) for version in store.versions("digits-flow", newest=1)] == [
        (2, ()),
        (1, ("champion",)),
    ]


def test_tags_and_files_are_added_to_a_version_later(store: Tracking, bundle: Path, tmp_path: Path) -> None:
    version = cases.register(store, bundle)
    (tmp_path / "decision.json").write_text('{"verdict": "kept"}')
    store.set_tags(version, VersionTags(verdict="kept"))
    store.attach(version, {"decision.json": tmp_path / "decision.json"})
    assert store.version(version.ref).tags.verdict == "kept"
    assert (Path(client(store).get_run(version.run_id).info.artifact_uri) / "decision.json").exists()


def test_a_fetched_bundle_is_the_registered_one_and_is_fetched_once(store: Tracking, bundle: Path, tmp_path: Path) -> None:
    version = cases.register(store, bundle)
    to = store.fetch(version, tmp_path / "cache" / version.key)
    assert manifest.sha256_tree(to) == manifest.sha256_tree(bundle)
    shutil.rmtree(_files(store, version))
    assert store.fetch(version, to) == to  # already fetched, and verified again
    (to / "model.json").write_text("{}")
    with pytest.raises(IntegrityError, match="cannot be read"):
        store.fetch(version, to)
    assert list((tmp_path / "cache").iterdir()) == []


def _files(store: Tracking, version: ModelVersion) -> Path:
    return Path(client(store).get_run(version.run_id).info.artifact_uri) / "model"


def _flip(files: Path) -> None:
    weights = files / "data" / "bundle" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")


def _reseal(files: Path) -> None:
    """Replace the weights and the manifest: consistent with each other, but different from the registered ones."""
    shutil.rmtree(files / "data" / "bundle")
    cases.make_bundle(files / "data" / "bundle", seed=5)


def _loader(files: Path) -> None:
    (files / "evil.py").write_text("raise SystemExit('ran')")
    about = (files / "MLmodel").read_text()
    (files / "MLmodel").write_text(about.replace("remint.serving.pyfunc", "evil"))


def _code(files: Path) -> None:
    about = (files / "MLmodel").read_text()
    (files / "MLmodel").write_text(
        about.replace("code: null", "code: code").replace("loader_module:", "code: code\n    loader_module:", 1)
    )


def test_servers_that_fetch_one_version_at_once_get_it_whole(store: Tracking, bundle: Path, tmp_path: Path) -> None:
    version = cases.register(store, bundle)
    for number in range(5):
        to, together = tmp_path / "copies" / str(number), threading.Barrier(4)

        def fetch(to: Path = to, together: threading.Barrier = together) -> list[str]:
            together.wait()
            return sorted(path.name for path in store.fetch(version, to).iterdir())

        with ThreadPoolExecutor(4) as pool:
            found = [asked.result() for asked in [pool.submit(fetch) for _ in range(4)]]
        assert found == [sorted(path.name for path in bundle.iterdir())] * 4


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_flip, "is damaged"),
        (_reseal, "differs from the registered one"),
        (_loader, "remint loads only remint.serving.pyfunc without code"),
        (_code, "MLmodel"),
        (lambda files: (files / "python_model.pkl").write_bytes(b"\x80\x04."), "is not a file of a registered model"),
        (lambda files: (files / "data" / "bundle" / "x.pt").write_bytes(b"\x80\x04."), "is not a file of a registered model"),
        (lambda files: (files / "data" / "bundle" / "model.json").unlink(), "is missing"),
        (lambda files: (files / "MLmodel").write_text("]["), "does not describe a model"),
        (lambda files: (files / "MLmodel").unlink(), "does not describe a model"),
        (shutil.rmtree, "cannot be read"),
    ],
)
def test_files_that_differ_from_the_registered_ones_are_not_fetched(
    store: Tracking, bundle: Path, tmp_path: Path, damage: Any, says: str
) -> None:
    version = cases.register(store, bundle)
    damage(_files(store, version))
    with pytest.raises(IntegrityError, match=says):
        store.fetch(version, tmp_path / "cache" / "got")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_version_that_remint_did_not_register_is_listed_and_not_fetched(store: Tracking, tmp_path: Path) -> None:
    client(store).create_registered_model("theirs")
    client(store).create_model_version("theirs", str(tmp_path), await_creation_for=0)
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {loader_module: mlflow.sklearn, data: model.pkl}}")
    version = store.version("theirs/1")
    assert version.dirty and version.key == ""
    with pytest.raises(IntegrityError, match=r"mlflow\.sklearn"):
        store.fetch(version, tmp_path / "cache" / "theirs")


@pytest.mark.slow
def test_runs_of_dead_jobs_are_closed_and_runs_of_live_jobs_are_not(store: Tracking, home: Path, bundle: Path) -> None:
    mine = store.start_run("digits-flow", {}, {})
    program = [sys.executable, "-m", "tests.support.registry_cases", str(home), str(bundle), "die"]
    killed = subprocess.run(program, capture_output=True, text=True, check=False)
    assert killed.returncode == -9
    assert store.close_stale() == [killed.stdout.strip()]
    dead = client(store).get_run(killed.stdout.strip())
    assert dead.info.status == "KILLED" and "died" in dead.data.tags["mlflow.note.content"]
    assert client(store).get_run(mine).info.status == "RUNNING" and store.close_stale() == []
    store.end_run(mine, "FINISHED")


def test_mlflow_errors_become_errors_of_ours(store: Tracking, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        store.end_run("0" * 32, "FINISHED")
    with pytest.raises(TrackingError, match="could not"):
        store.log_metrics("not a run", [{"step": 1, "loss": 1.0}])
    (tmp_path / "text.db").write_text("this is not a database" * 100)
    with pytest.raises(TrackingError, match="not a database"):
        Tracking(f"sqlite:///{tmp_path}/text.db", str(tmp_path), tmp_path / "lock").initialise()


def test_a_postgresql_address_without_a_driver_uses_psycopg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default driver of SQLAlchemy depends on its version."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ada@/mlflow")
    assert Home(tmp_path, tmp_path).tracking_uri == "postgresql+psycopg://ada@/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+other://ada@/mlflow")
    assert Home(tmp_path, tmp_path).tracking_uri == "postgresql+other://ada@/mlflow"


def test_a_programming_error_is_not_hidden() -> None:
    with pytest.raises(KeyError), door.door("do this"):
        raise KeyError("a mistake in remint")
    with pytest.raises(RunError, match="as it was"), door.door("do this"):
        raise RunError("as it was")


def test_the_folders_of_runs_are_listed_beside_the_store_of_a_server(store: Tracking) -> None:
    """A server of `remint up` makes its experiment Default first if no run came before."""
    run_id = store.start_run("digits-flow", {}, {})
    store.end_run(run_id, "FINISHED")
    client(store).create_experiment("of a server", artifact_location="mlflow-artifacts:/0")
    place = Path(store.artifacts) / "digits-flow" / run_id
    place.mkdir(parents=True)
    assert list(inventory.run_folders(store)) == [(run_id, str(place))]


def test_files_go_to_a_newly_configured_store_and_old_files_stay(store: Tracking, home: Path) -> None:
    old = store.start_run("digits-flow", {}, {})
    store.end_run(old, "FINISHED")
    moved = Tracking(store.uri, "s3://bucket/mlflow", store.lock)
    runs = [moved.start_run("digits-flow", {}, {}) for _ in range(2)]
    for run_id in runs:
        moved.end_run(run_id, "FINISHED")
    experiments = {each.name: each for each in client(store).search_experiments()}
    assert experiments["digits-flow"].artifact_location == "s3://bucket/mlflow/digits-flow"
    infos = [client(store).get_run(run_id).info for run_id in (old, *runs)]
    assert {info.experiment_id for info in infos[1:]} == {experiments["digits-flow"].experiment_id}
    former = experiments[f"digits-flow ({infos[0].experiment_id}, files in {home}/mlflow/artifacts/digits-flow)"]
    assert infos[0].experiment_id == former.experiment_id and infos[0].artifact_uri.startswith(str(home))


@pytest.mark.parametrize(
    ("place", "repository", "line"),
    [
        ("git", "https://example.org/models.git", f"remint @ git+https://example.org/models.git@{'c' * 40}"),
        ("git", "ssh://example.org/models.git", f"remint @ git+ssh://git@example.org/models.git@{'c' * 40}"),
        ("git", "git@example.org:team/models.git", f"remint @ git+ssh://git@example.org/team/models.git@{'c' * 40}"),
        ("git", "/srv/models.git", f"remint=={importlib.metadata.version('remint')}"),
        ("git", "file:///srv/models.git", f"remint=={importlib.metadata.version('remint')}"),
        ("git", "../models.git", f"remint=={importlib.metadata.version('remint')}"),
        ("git", "", f"remint=={importlib.metadata.version('remint')}"),
        ("index", "https://example.org/models.git", f"remint=={importlib.metadata.version('remint')}"),
        ("https://example.org/r-1-py3-none-any.whl", "", "remint @ https://example.org/r-1-py3-none-any.whl"),
    ],
)
def test_the_requirements_of_a_model_say_where_pip_finds_remint(
    bundle: Path, tmp_path: Path, place: str, repository: str, line: str
) -> None:
    tags = VersionTags(commit="c" * 40, repository=repository)
    packed = package.pack(bundle, cases.SPEC, package.requirement(place, tags), tmp_path / "model")
    first, *others, last = (packed / "requirements.txt").read_text().splitlines()
    assert (first, last) == (line, "-c constraints.txt")
    pins = (packed / "constraints.txt").read_text().splitlines()
    assert {f"boto3=={importlib.metadata.version('boto3')}", "torch==2.13.0"} <= set(pins)
    assert all("+" not in pin and Requirement(pin).name != "remint" for pin in pins)
    assert [name.partition("==")[0] for name in others] == list(package.NEEDS)
    assert all("+" not in other for other in others), "a local version is on no index"
    for requirement in (first, *others):
        assert str(Requirement(requirement).name) == requirement.partition(" @ ")[0].partition("==")[0]
    assert line in load_safe_yaml((packed / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    assert package.unpack(packed) == packed / package.DATA


def test_the_requirements_of_a_version_follow_the_setting(
    store: Tracking, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def first(version: ModelVersion) -> str:
        place = Path(client(store).get_run(version.run_id).info.artifact_uri)
        return (place / "model/requirements.txt").read_text().splitlines()[0]

    tags = cases.TAGS.updated(VersionTags(repository="https://example.org/models.git"))
    assert first(cases.register(store, bundle, tags=tags)) == f"remint @ git+https://example.org/models.git@{'c' * 40}"
    cases.make_bundle(tmp_path / "other", seed=1)
    monkeypatch.setenv("REMINT_PACKAGE", str(tmp_path / "remint-1-py3-none-any.whl"))
    store.place = Home.of(tmp_path).package
    assert first(cases.register(store, tmp_path / "other", tags=tags)) == f"remint @ file://{tmp_path}/remint-1-py3-none-any.whl"


@pytest.mark.parametrize(
    "value", ["pypi", "https://example.org/remint", "https://TOKEN@example.org/r.whl", "https://a:b@h/r.whl"]
)
def test_an_invalid_or_secret_address_of_remint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("REMINT_PACKAGE", value)
    with pytest.raises(SettingsError, match="REMINT_PACKAGE: expected git, index, or a wheel") as refused:
        open_tracking(Home.of(tmp_path))
    assert "TOKEN" not in str(refused.value)
