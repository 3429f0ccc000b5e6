"""Where a run leaves what it leaves behind: REMINT_HOME, by default ``.remint/`` of the repository.

Each address can be set to another by the variable that its own tool knows:

    MLflow    MLFLOW_TRACKING_URI    sqlite:///HOME/mlflow/mlflow.db, artifacts in HOME/mlflow/artifacts
    ledger    REMINT_LEDGER          sqlite:///HOME/ledger.db
    Prefect   PREFECT_API_URL        a temporary server on HOME/prefect/prefect.db
    DVC       .dvc/config(.local)    cache and remote in HOME/dvc
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The folder and the addresses in it. ``repository`` is the person's clone, whose tree is never written to."""

    repository: Path
    path: Path

    @classmethod
    def of(cls, repository: Path) -> Home:
        return cls(repository, Path(os.environ.get("REMINT_HOME") or repository / ".remint").absolute())

    @property
    def tracking_uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.path}/mlflow/mlflow.db"

    @property
    def artifacts(self) -> str:
        return str(self.path / "mlflow" / "artifacts")

    @property
    def ledger_url(self) -> str:
        return os.environ.get("REMINT_LEDGER") or f"sqlite:///{self.path}/ledger.db"

    @property
    def prefect(self) -> Path:
        return self.path / "prefect"

    @property
    def dvc(self) -> Path:
        return self.path / "dvc"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def workspaces(self) -> Path:
        return self.path / "workspaces"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs"

    @property
    def reports(self) -> Path:
        return self.path / "reports"

    def report(self, model: str, version: int) -> Path:
        """Report and pictures of one version."""
        return self.reports / model / str(version)

    def lock(self, name: str) -> Path:
        return self.path / "locks" / name

    def ensure(self) -> Home:
        """Makes the folder, readable by its owner only (dvc's site cache in it is unpickled by dvc)."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.path / "locks").mkdir(exist_ok=True)
        return self
