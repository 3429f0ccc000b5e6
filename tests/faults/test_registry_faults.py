"""Registration under faults: many processes at once, no database yet, a full disk, an unreachable server."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from remint.errors import StorageError, TrackingError
from remint.serving import fresh
from remint.stores.mlflow import Tracking, door
from tests.support import registry_cases as cases
from tests.support.ports import free_port

pytestmark = pytest.mark.usefixtures("forked")


def client(store: Tracking) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(store.uri)


def register_in_processes(home: Path, bundle: Path, count: int, uri: str = "") -> list[str]:
    program = [sys.executable, "-m", "tests.support.registry_cases", str(home), str(bundle), str(count), uri]
    done = subprocess.run(program, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
@pytest.mark.parametrize("count", [4, pytest.param(16, marks=pytest.mark.soak)])
def test_simultaneous_processes_without_a_database_register_one_version(
    database: str, count: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = ""
    if database == "postgresql":
        uri = request.getfixturevalue("postgres").database("at-once").replace("postgresql:", "postgresql+psycopg:")
    cases.make_bundle(tmp_path / "bundle")
    assert register_in_processes(tmp_path / "home", tmp_path / "bundle", count, uri) == ["1"] * count
    store = cases.tracking(tmp_path / "home", uri)
    (version,) = store.versions("digits-flow")
    assert version.tags.verified == "16 samples as recorded at training, to the bit"
    assert len(list((tmp_path / "home").glob("*.log"))) == 1  # one process verified the model
    fresh.check(store.fetch(version, tmp_path / "got"), tmp_path / "log")
    experiment = client(store).get_experiment_by_name("digits-flow").experiment_id
    runs = client(store).search_runs([experiment])
    assert Counter(run.info.status for run in runs) == {"FINISHED": count}
    assert all(len(client(store).get_metric_history(run.info.run_id, "loss")) == 5 for run in runs)


@pytest.mark.soak
def test_two_processes_register_two_models_at_the_same_time(tmp_path: Path) -> None:
    cases.make_bundle(tmp_path / "a", pipeline="a")
    cases.make_bundle(tmp_path / "b", pipeline="b")
    versions: dict[str, list[str]] = {}
    threads = [
        threading.Thread(
            target=lambda name=name: versions.update({name: register_in_processes(tmp_path / "home", tmp_path / name, 1)})
        )
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions == {"a": ["1"], "b": ["1"]}


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Tracking:
    shutil.copytree(empty, tmp_path / "home")
    return cases.tracking(tmp_path / "home")


@pytest.mark.parametrize("files", [0, 1, 4])
def test_a_full_disk_during_the_upload_leaves_no_version(
    store: Tracking, tmp_path: Path, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC is injected into MLflow's upload after some files."""
    from mlflow import MlflowClient

    cases.make_bundle(tmp_path / "bundle")
    run_id = store.start_run("digits-flow", {}, {})

    def raise_no_space(self: Any, run_id: str, folder: str, place: str) -> None:
        target = Path(self.get_run(run_id).info.artifact_uri) / place
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file())[:files]:
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path.relative_to(folder))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="no room to"):
        patch.setattr(MlflowClient, "log_artifacts", raise_no_space)
        cases.register(store, tmp_path / "bundle", run_id)
    assert store.names() == [] and client(store).get_run(run_id).info.status == "RUNNING"  # the upload can be repeated
    version = cases.register(store, tmp_path / "bundle", run_id)
    store.fetch(version, tmp_path / "got")
    assert [each.version for each in store.versions("digits-flow")] == [1]


def test_a_file_size_limit_is_reported_as_a_full_disk(tmp_path: Path, empty: Path) -> None:
    """A real limit of the kernel (RLIMIT_FSIZE) on a real process: weights of 4 MB, files of at most 3 MB."""
    shutil.copytree(empty, tmp_path / "home")
    cases.make_bundle(tmp_path / "bundle", hidden=700)
    assert (tmp_path / "bundle" / "weights.safetensors").stat().st_size > 4_000_000
    program = "\n".join(
        [
            "import resource, sys; from pathlib import Path; from tests.support import registry_cases as cases",
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
    assert store.names() == [] and store.close_stale() == []  # the run of the upload is marked as failed
    assert cases.register(store, tmp_path / "bundle").version == 1


def test_a_database_that_cannot_grow_is_reported_as_a_full_disk(store: Tracking, tmp_path: Path) -> None:
    cases.make_bundle(tmp_path / "bundle")
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


def test_an_unreachable_mlflow_server_is_a_tracking_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    door.client.cache_clear()
    with pytest.raises(TrackingError, match="could not"):
        Tracking(f"http://127.0.0.1:{free_port()}", "", tmp_path / "lock").names()
