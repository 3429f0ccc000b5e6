"""Registration under what goes wrong: many processes at once, no database yet, a full disk, replies that are lost."""

from __future__ import annotations

import errno
import http.client
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from remint.errors import StorageError, TrackingError
from remint.serving import fresh
from remint.tracking import Tracking, door
from tests import registry_cases as cases


def client(store: Tracking) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(store.uri)


def together(home: Path, bundle: Path, count: int, uri: str = "") -> list[str]:
    program = [sys.executable, "-m", "tests.registry_cases", str(home), str(bundle), str(count), uri]
    done = subprocess.run(program, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_sixteen_processes_on_no_database_register_one_version(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = ""
    if database == "postgresql":
        uri = request.getfixturevalue("postgres").database("sixteen").replace("postgresql:", "postgresql+psycopg:")
    cases.make(tmp_path / "bundle")
    assert together(tmp_path / "home", tmp_path / "bundle", 16, uri) == ["1"] * 16
    store = cases.tracking(tmp_path / "home", uri)
    (version,) = store.versions("digits-flow")
    assert version.tags["verified"] == "16 samples as recorded at training, to the bit"
    assert len(list((tmp_path / "home").glob("*.log"))) == 1  # one process had to look
    fresh.check(store.fetch(version, tmp_path / "got"), tmp_path / "log")
    experiment = client(store).get_experiment_by_name("digits-flow").experiment_id
    runs = client(store).search_runs([experiment])
    assert Counter(run.info.status for run in runs) == {"FINISHED": 16}
    assert all(len(client(store).get_metric_history(run.info.run_id, "loss")) == 5 for run in runs)


def test_two_processes_with_a_model_each_do_not_lock_each_other_out(tmp_path: Path) -> None:
    cases.make(tmp_path / "a", pipeline="a")
    cases.make(tmp_path / "b", pipeline="b")
    said: dict[str, list[str]] = {}
    threads = [
        threading.Thread(target=lambda name=name: said.update({name: together(tmp_path / "home", tmp_path / name, 1)}))
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {"a": ["1"], "b": ["1"]}


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Tracking:
    shutil.copytree(empty, tmp_path / "home")
    return cases.tracking(tmp_path / "home")


@pytest.mark.parametrize("files", [0, 1, 4])
def test_a_disk_that_fills_up_during_the_upload_leaves_no_version(
    store: Tracking, tmp_path: Path, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC is injected where MLflow copies, after some files are there."""
    from mlflow import MlflowClient

    cases.make(tmp_path / "bundle")
    run_id = store.start_run("digits-flow", {}, {})

    def full(self: Any, run_id: str, folder: str, place: str) -> None:
        target = Path(self.get_run(run_id).info.artifact_uri) / place
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file())[:files]:
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path.relative_to(folder))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="no room to"):
        patch.setattr(MlflowClient, "log_artifacts", full)
        cases.register(store, tmp_path / "bundle", run_id)
    assert store.names() == [] and client(store).get_run(run_id).info.status == "RUNNING"  # it may be tried again
    version = cases.register(store, tmp_path / "bundle", run_id)
    store.fetch(version, tmp_path / "got")
    assert [each.version for each in store.versions("digits-flow")] == [1]


def test_a_file_that_may_not_grow_is_a_full_disk_too(tmp_path: Path, empty: Path) -> None:
    """A real limit of the kernel (RLIMIT_FSIZE) on a real process: weights of 4 MB, files of at most 3 MB."""
    shutil.copytree(empty, tmp_path / "home")
    cases.make(tmp_path / "bundle", hidden=700)
    assert (tmp_path / "bundle" / "weights.safetensors").stat().st_size > 4_000_000
    program = "\n".join(
        [
            "import resource, sys; from pathlib import Path; from tests import registry_cases as cases",
            "store = cases.tracking(Path(sys.argv[1]))",
            "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, resource.RLIM_INFINITY))",
            "try:",
            "    cases.register(store, Path(sys.argv[2]))",
            "except Exception as error: print(type(error).__name__, str(error).splitlines()[0])",
        ]
    )
    command = [sys.executable, "-c", program, str(tmp_path / "home"), str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("StorageError no room to upload digits-flow"), done.stdout + done.stderr
    store = cases.tracking(tmp_path / "home")
    assert store.names() == [] and store.close_stale() == []  # the run that was opened for it says that it failed
    assert cases.register(store, tmp_path / "bundle").version == 1


def test_a_database_that_cannot_grow_is_a_full_disk_too(store: Tracking, tmp_path: Path) -> None:
    cases.make(tmp_path / "bundle")
    run_id = store.start_run("digits-flow", {}, {})
    size = (tmp_path / "home" / "mlflow" / "mlflow.db").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises((StorageError, TrackingError)) as caught:
            for start in range(0, 100_000, 1000):
                store.log_metrics(run_id, [{"step": step, "filling": 1.0} for step in range(start, start + 1000)])
        assert "no room" in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert cases.register(store, tmp_path / "bundle").version == 1


class _LosesReplies(BaseHTTPRequestHandler):
    """Hands every request on and gives the answer back, but for the first reply to each POST that makes something."""

    target: int
    lost: Counter[str]

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
        server.request(self.command, self.path, body, headers)
        reply = server.getresponse()
        content = reply.read()
        server.close()
        made = self.path.rsplit("/", 2)[-2]
        if self.command == "POST" and self.path.endswith("/create") and self.lost[made] % 3 < 2:
            self.lost[made] += 1
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.lost[made] += self.command == "POST" and self.path.endswith("/create")
        self.send_response(reply.status)
        for key, value in reply.getheaders():
            if key.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(empty: Path, tmp_path: Path) -> Iterator[int]:
    """A real MLflow server; its port."""
    shutil.copytree(empty, tmp_path / "served")
    port = _free_port()
    stores = [
        f"--backend-store-uri=sqlite:///{tmp_path}/served/mlflow/mlflow.db",
        f"--artifacts-destination={tmp_path}/served/files",
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1", *stores]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            try:
                probe = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                probe.request("GET", "/health")
                if probe.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def test_replies_that_are_lost_after_the_server_did_it_double_nothing(server: int, tmp_path: Path) -> None:
    lost: Counter[str] = Counter()
    handler = type("Handler", (_LosesReplies,), {"target": server, "lost": lost})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    store = Tracking(f"http://127.0.0.1:{proxy.server_port}", "", tmp_path / "locks" / "registry")
    try:
        for seed in range(3):
            cases.make(tmp_path / f"bundle{seed}", seed)
            assert cases.register(store, tmp_path / f"bundle{seed}").version == seed + 1
        assert cases.register(store, tmp_path / "bundle0").version == 1
    finally:
        proxy.shutdown()
    direct = Tracking(f"http://127.0.0.1:{server}", "", tmp_path / "locks" / "registry")
    versions = direct.versions("digits-flow")
    assert [version.version for version in versions] == [3, 2, 1] and len({version.key for version in versions}) == 3
    runs = client(direct).search_runs([client(direct).get_experiment_by_name("digits-flow").experiment_id])
    assert Counter(run.info.status for run in runs) == {"FINISHED": 3}
    for version in versions:
        assert json.loads((direct.fetch(version, tmp_path / "got" / version.key) / "training.json").read_text())["steps"] == 10
    assert lost["model-versions"] >= 3 and lost["runs"] >= 3 and lost["registered-models"] >= 1


def test_a_server_that_is_not_there_is_one_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    door.client.cache_clear()
    with pytest.raises(TrackingError, match="could not"):
        Tracking(f"http://127.0.0.1:{_free_port()}", "", tmp_path / "lock").names()
