"""Where a run leaves what it leaves behind: REMINT_HOME, by default ``.remint/`` of the repository.

Each address can be set to another by the variable that its own tool knows:

    MLflow       MLFLOW_TRACKING_URI    sqlite:///HOME/mlflow/mlflow.db
    its files    REMINT_ARTIFACTS       HOME/mlflow/artifacts; a folder or s3://bucket/prefix (an MLflow server has its own)
    ledger       REMINT_LEDGER          sqlite:///HOME/ledger.db
    Prefect      PREFECT_API_URL        a temporary server on HOME/prefect/prefect.db
    DVC          .dvc/config(.local)    cache and remote in HOME/dvc
    its remote   REMINT_DVC_REMOTE      the one of .dvc/config(.local); a folder or s3://bucket/prefix, for jobs only
    buckets      (none)                 what s3:// sources held last, in HOME/fetched; single files, in HOME/files

What lies on S3 is found with boto3's own settings (AWS_ENDPOINT_URL, AWS_PROFILE and so on): docs/how-to/use-s3.md.
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
        return _address("REMINT_ARTIFACTS") or str(self.path / "mlflow" / "artifacts")

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
    def dvc_remote(self) -> str | None:
        """The remote of jobs where it is not the one of .dvc/config(.local)."""
        return _address("REMINT_DVC_REMOTE")

    @property
    def fetched(self) -> Path:
        """What s3:// sources held when they were fetched last, a folder a dataset."""
        return self.path / "fetched"

    @property
    def files(self) -> Path:
        """Files that settings name by an s3:// address, each under its SHA-256."""
        return self.path / "files"

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


def _address(variable: str) -> str | None:
    """A folder, absolute, or an address such as s3://bucket/prefix; None where the variable is not set."""
    value = os.environ.get(variable, "").rstrip("/")
    return (value if "://" in value else str(Path(value).expanduser().absolute())) if value else None
