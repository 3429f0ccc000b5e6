"""MLflow runs: open them, log curves and files, and close them, also after a crash."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from remint.runtime import scratch
from remint.runtime.addresses import local_path
from remint.stores.mlflow.door import client, create_once, door, exclusive_lock, pages, prefixed

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 1000  # points of curves in one request
PARAMS = 100  # parameters in one request
DIED = "its process died without closing it"  # reason of a run that another process closes
LOAD_EVERY = 5  # seconds between two samples of this machine's load


class Runs:
    """Runs of one MLflow.

    ``uri``: sqlite:///FILE, postgresql+psycopg://.. or a server's http(s)://..; ``artifacts``: folder or address for the files
    of a database's runs (a server has its own); ``lock``: this host's lock files are made beside this file; ``lock_url``:
    PostgreSQL database for locks between hosts if ``uri`` is none (with any other address, locks hold on this host only).
    """

    def __init__(self, uri: str, artifacts: str, lock: Path, lock_url: str = "", place: str = "git") -> None:
        self.uri = uri
        self.artifacts = artifacts
        self.lock = lock
        self.place = place  # source of remint in a model's requirements: Home.package
        self.lock_url = uri if uri.startswith("postgresql") else lock_url

    def initialise(self) -> None:
        """Make MLflow's database if there is none (seconds, once). Every other method does this too."""
        with door("open its database"):
            self._client.search_experiments(max_results=1)

    def exclusive_lock(self, name: str) -> AbstractContextManager[None]:
        """Hold the exclusive lock ``name`` inside the block, among all processes that share this MLflow."""
        return exclusive_lock(self.lock, name, self.lock_url)

    @property
    def _client(self) -> MlflowClient:
        return client(self.uri, self.lock)

    def start_run(self, pipeline: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Open a run of the experiment ``pipeline`` and log this machine's load until it ends. Return its id."""
        from mlflow.entities import Param
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with door(f"open a run of {pipeline}"):
            mlflow, experiment = self._client, self._experiment(pipeline)
            token = uuid.uuid4().hex
            ours = {
                "remint.start": token,
                "remint.process": _this_process(),
                "mlflow.source.name": "remint",
                "mlflow.user": getpass.getuser(),
            }
            everything = {**ours, **prefixed(tags)}
            run_id = create_once(
                lambda: str(mlflow.create_run(experiment, tags=everything, run_name=pipeline).info.run_id),
                lambda: next(
                    (str(run.info.run_id) for run in mlflow.search_runs([experiment], f"tags.`remint.start` = '{token}'")), None
                ),
            )
            written = [Param(key, value) for key, value in _flat(params).items()]
            for start in range(0, len(written), PARAMS):
                mlflow.log_batch(run_id, params=written[start : start + PARAMS])
            monitor: Any = SystemMetricsMonitor  # it has no types
            monitor(run_id, sampling_interval=LOAD_EVERY, tracking_uri=self.uri).start()
            return run_id

    def log_metrics(self, run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
        """Append to the curves of a run. Each row holds ``step`` and, by name, the values at that step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [
            Metric(name, float(value), now, int(row["step"])) for row in rows for name, value in row.items() if name != "step"
        ]
        with door("log metrics"):
            for start in range(0, len(points), BATCH):
                self._client.log_batch(run_id, metrics=points[start : start + BATCH])

    def log_file(self, run_id: str, path: Path, name: str | None = None) -> None:
        """Store a file or folder with the run as ``name`` (may contain slashes; default: the file's name)."""
        place = Path(name or path.name)
        folder = str(place.parent) if place.parent != Path() else None
        with door(f"keep {path.name}"):
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), str(place))
            elif place.name == path.name:
                self._client.log_artifact(run_id, str(path), folder)
            else:
                with scratch.folder() as temporary:
                    self._client.log_artifact(run_id, str(shutil.copy(path, temporary / place.name)), folder)

    def end_run(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"], reason: str = "") -> None:
        """Close a run; ``reason`` becomes its description. Do nothing if it is closed already."""
        with door(f"close run {run_id}"):
            if self._client.get_run(run_id).info.status != "RUNNING":
                return
            if reason:
                self._client.set_tag(run_id, "mlflow.note.content", reason[:5000])
            self._client.set_terminated(run_id, status)

    def reopen_run(self, run_id: str) -> None:
        """Reopen a closed run; it belongs to this process from now on."""
        with door(f"open run {run_id} again"):
            self._client.set_tag(run_id, "remint.process", _this_process())
            self._client.set_tag(run_id, "mlflow.note.content", "")
            self._client.update_run(run_id, status="RUNNING")

    def artifact_place(self, pipeline: str) -> str:
        """Return the address of the files of the experiment ``pipeline``. Make it if there is none."""
        with door(f"find the experiment {pipeline}"):
            return str(self._client.get_experiment(self._experiment(pipeline)).artifact_location)

    def stale_runs(self) -> list[str]:
        """Return the ids of open runs whose process, on this host, has died."""
        with door("look for stale runs"):
            experiments = [experiment.experiment_id for experiment in pages(self._client.search_experiments)]
            filters = f"attributes.status = 'RUNNING' and tags.`remint.process` LIKE '{socket.gethostname()}/%'"
            running = pages(lambda **page: self._client.search_runs(experiments, filters, **page))
            return [run.info.run_id for run in running if not _is_alive(run.data.tags["remint.process"])]

    def close_stale(self) -> list[str]:
        """Close, as KILLED, the open runs whose process, on this host, has died. Return their ids."""
        stale = self.stale_runs()
        for run_id in stale:
            self.end_run(run_id, "KILLED", DIED)
        return stale

    def _experiment(self, name: str) -> str:
        """Return the id of the experiment of this name. Make it if there is none.

        MLflow never changes the artifact store of an experiment. If REMINT_ARTIFACTS names another store now, the old
        experiment is renamed and keeps its files.
        """
        place = None if self.uri.startswith("http") else f"{self.artifacts}/{name}"

        def find() -> str | None:
            found = self._client.get_experiment_by_name(name)
            elsewhere = found and place and local_path(place) is None and found.artifact_location != place
            return str(found.experiment_id) if found and not elsewhere else None

        known = find()
        if known is None:
            with self.exclusive_lock("experiments"):
                known = find()
                if known is None:
                    former = self._client.get_experiment_by_name(name)
                    if former:
                        new = f"{name} ({former.experiment_id}, files in {former.artifact_location})"
                        self._client.rename_experiment(former.experiment_id, new)
                    known = create_once(lambda: str(self._client.create_experiment(name, artifact_location=place)), find)
        return known


def _this_process() -> str:
    """Return host, pid and start time of this process (pids are reused)."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    return f"{socket.gethostname()}/{os.getpid()}/{psutil.Process().create_time():.2f}"


def _is_alive(process: str) -> bool:
    import psutil  # type: ignore[import-untyped, unused-ignore]

    _, pid, began = process.rsplit("/", 2)
    try:
        return bool(abs(psutil.Process(int(pid)).create_time() - float(began)) < 1.0)
    except psutil.NoSuchProcess:
        return False


def _flat(block: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as MLflow parameters: ``training.steps`` -> "1500"."""
    flat: dict[str, str] = {}
    for key, value in block.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat
