"""Folder and addresses of a run's files: REMINT_HOME, by default ``.remint/`` of the repository.

A variable changes each address. The defaults:

    MLflow       MLFLOW_TRACKING_URI    sqlite:///HOME/mlflow/mlflow.db
    its files    REMINT_ARTIFACTS       HOME/mlflow/artifacts; a folder or s3://bucket/prefix (an MLflow server has its own)
    ledger       REMINT_LEDGER          sqlite:///HOME/ledger.db
    Prefect      PREFECT_API_URL        a temporary server on HOME/prefect/prefect.db
    DVC          .dvc/config(.local)    cache and remote in HOME/dvc
    its remote   REMINT_DVC_REMOTE      the one of .dvc/config(.local); a folder or s3://bucket/prefix, for jobs only
    remint       REMINT_PACKAGE         git: origin at the job's commit; index; or a wheel: for a model's requirements
    buckets      (none)                 last fetched content of s3:// sources in HOME/fetched; single files in HOME/files

S3 is reached with boto3's own settings (AWS_ENDPOINT_URL, AWS_PROFILE and so on): docs/how-to/use-s3.md.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from remint.errors import IntegrityError, NotFoundError, SettingsError
from remint.runtime.addresses import sqlite_address, with_driver

# Allowed names of datasets, pipelines and models. They become names of files and artifacts, arguments of shell commands that
# dvc runs, and parts of MLflow's queries. dvc takes outs/prepared/a.dvc and evaluate@a.dvc for files of its own.
NAME = re.compile(r"(?!dvc\.yaml$|.*\.dvc$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NAME_RULE = "at most 100 letters, digits, '.', '_' and '-', a letter or digit first, and not a DVC file (dvc.yaml, *.dvc)"
KEY = re.compile(r"[0-9a-f]{64}")  # of a version, TrainedModel.key
CREDENTIALS = re.compile(r"://[^/]*:(?!\d*(/|$))")  # in an address: the text after the host's colon is not a port

# Parts that the path of a clone or of REMINT_HOME must not have: a vendor reads them in another way, and has no escape for them.
REFUSED = {
    r":": "a colon divides the folders of PYTHONPATH",
    r"[\x00-\x1f\x7f\ud800-\udfff]": "git and DVC need a path in UTF-8 on one line",
    r"%\([^)]*\)s": "DVC puts another setting in place of %(..)s",
    r"\{\{.*\}\}": "Prefect puts a value in place of {{..}}",
    r"'{3}.*\"{3}|\"{3}.*'{3}": "DVC's settings can hold one kind of triple quotes only",
}

# Retries of dvc and MLflow on S3: boto's default gives up early. A person's own settings take precedence.
S3_PATIENCE = {"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "8"}


@dataclass(frozen=True)
class Home:
    """Home folder and its addresses. ``repository`` is the person's clone; its working tree is never written to."""

    repository: Path
    path: Path

    @classmethod
    def of(cls, repository: Path) -> Home:
        """Return the home of a repository. Raises SettingsError if a path contains what a vendor cannot read."""
        home = cls(repository, Path(os.environ.get("REMINT_HOME") or repository / ".remint").absolute())
        for path, do in ((repository, "move the clone"), (home.path, "set REMINT_HOME to another folder")):
            why = next((why for pattern, why in REFUSED.items() if re.search(pattern, str(path))), None)
            if why:
                raise SettingsError(f"the path {ascii(str(path))[1:-1]} cannot be used ({why}): {do}")
        return home

    @property
    def tracking_uri(self) -> str:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_address(self.path / "mlflow" / "mlflow.db")
        return with_driver(uri)

    @property
    def artifacts(self) -> str:
        """Address of the files of MLflow's runs: file://.. or s3://bucket/prefix."""
        place = _address("REMINT_ARTIFACTS") or str(self.path / "mlflow" / "artifacts")
        return place if "://" in place else Path(place).as_uri()

    @property
    def ledger_url(self) -> str:
        return os.environ.get("REMINT_LEDGER") or sqlite_address(self.path / "ledger.db")

    @property
    def prefect(self) -> Path:
        return self.path / "prefect"

    @property
    def dvc(self) -> Path:
        return self.path / "dvc"

    @property
    def dvc_remote(self) -> str | None:
        """DVC remote of jobs; None: the one of .dvc/config(.local)."""
        return _address("REMINT_DVC_REMOTE")

    @property
    def package(self) -> str:
        """Source of remint in the requirements of a registered model: git, index, or the address of a wheel."""
        value = os.environ.get("REMINT_PACKAGE") or "git"
        if value in ("git", "index"):
            return value
        if not value.partition("#")[0].endswith(".whl") or urlsplit(value).username is not None:
            raise SettingsError("REMINT_PACKAGE: expected git, index, or a wheel: a file or an address without credentials")
        return value if "://" in value else Path(value).expanduser().absolute().as_uri()

    @property
    def fetched(self) -> Path:
        """Last fetched content of s3:// sources, one folder per dataset."""
        return self.path / "fetched"

    @property
    def files(self) -> Path:
        """Files that the settings name by an s3:// address, each under its SHA-256."""
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

    def copy(self, key: str) -> Path:
        """Return the folder of this machine's copy of a version. Raises IntegrityError if ``key`` (an MLflow tag) is no key."""
        if KEY.fullmatch(key) is None:
            raise IntegrityError(f"the tag remint.key has the value {key[:100]!r}, which is not a key: remint did not write it")
        return self.path / "models" / key

    def report(self, model: str, version: int) -> Path:
        """Return the folder with the report and pictures of one version. Raises NotFoundError if ``model`` is no valid name."""
        if not is_name(model):
            raise NotFoundError(f"{model[:100]!r} is not a valid model name: it has no report")
        return self.reports / model / str(version)

    def lock(self, name: str) -> Path:
        return self.path / "locks" / name

    def ensure(self) -> Home:
        """Make the folder, readable by its owner only (dvc unpickles its site cache in it)."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.path / "locks").mkdir(exist_ok=True)
        return self


def nearest_existing(path: Path) -> Path:
    """Return ``path`` if it exists, else the nearest folder above it that exists."""
    return path if path.exists() else nearest_existing(path.parent)


def is_name(text: str) -> bool:
    """Return whether this is a valid name of a dataset, pipeline or model."""
    return NAME.fullmatch(text) is not None


def _address(variable: str) -> str | None:
    """Return an absolute folder or an address such as s3://bucket/prefix; None if the variable is not set.

    Raises SettingsError if it contains credentials: MLflow records the address with every run that keeps files there.
    """
    value = os.environ.get(variable, "").rstrip("/")
    if CREDENTIALS.search(value):
        raise SettingsError(
            f"{variable}: expected s3://bucket/prefix without credentials (put those into ~/.aws or the environment)"
        )
    return (value if "://" in value else str(Path(value).expanduser().absolute())) if value else None
