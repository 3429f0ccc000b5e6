"""Records of a version that a rebuild needs: tags, dvc.lock, params.yaml, and the bundle of uncommitted work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remint.errors import IntegrityError
from remint.maintenance.rebuild.compare import Facts
from remint.promotion.tolerance import tolerances
from remint.runtime import manifest
from remint.runtime.home import is_name
from remint.stores import git
from remint.stores.dvc import dependency, locked
from remint.stores.mlflow import ModelVersion, Tracking

LOCK, PARAMS, BUNDLE = "dvc.lock", "params.yaml", "uncommitted.bundle"
NEEDED = ("commit", "data", "recipe", "fingerprint", "metrics", "dvc_lock_sha256", "weights_sha256")

# Tags that older versions may lack, and the consequence.
SINCE = {
    "params_sha256": "its params.yaml could not be verified",
    "python": "its version of Python is not known",
    "tolerance": "the tolerances are half the width of its 95% intervals",
    "not_installed": "packages that are not installed here were not compared",
    "repository": "the repository of its commit is not known",
}


@dataclass(frozen=True)
class VersionRecords:
    """Version with its verified files on this machine."""

    version: ModelVersion
    lock: Path
    params: Path
    notes: tuple[str, ...]  # about tags that it lacks

    @property
    def pipeline(self) -> str:
        return self.version.tags.pipeline or self.version.name

    @property
    def dataset(self) -> str:
        """Name of its dataset in params.yaml."""
        return str(self.version.tags.settings["dataset"])

    @property
    def features(self) -> str:
        """Name of its features step: that of the pipeline or, for an older version, that of the dataset."""
        return dependency(self.lock, f"evaluate@{self.pipeline}", "outs/features")

    @property
    def raw_sha256(self) -> str:
        return self.version.tags.origin.raw_sha256

    @property
    def repository(self) -> str:
        """Repository of its commit, for messages."""
        return self.version.tags.repository or "a repository without an origin"

    @property
    def facts(self) -> Facts:
        tags = self.version.tags
        return Facts(
            weights_sha256=self.version.weights_sha256,
            dataset=self.version.dataset,
            features=locked(self.lock, f"features@{self.features}")["md5"],
            report_sha256=tags.report_sha256 or "",
            manifest_sha256=tags.manifest_sha256 or "",
            settings=tags.settings,
            metrics=tags.measurements,
            fingerprint=tags.made_on,
        )

    @property
    def tolerance(self) -> dict[str, dict[str, Any]]:
        return self.version.tags.tolerances or tolerances(self.facts.metrics, None, "")


def _check_names(version: ModelVersion) -> None:
    """Raise IntegrityError if tags hold invalid names: they become arguments of git and dvc."""
    try:
        names = [version.tags.pipeline or version.name, version.tags.settings["dataset"]]
    except (IntegrityError, KeyError) as error:
        raise IntegrityError(
            f"{version.ref} cannot be built again: its tag recipe is invalid ({type(error).__name__})"
        ) from error
    for name in names:
        if not isinstance(name, str) or not is_name(name):
            raise IntegrityError(
                f"{version.ref} cannot be built again: its tags hold {str(name)[:100]!r}, which is not a valid name"
            )
    if not git.is_commit(version.commit):
        raise IntegrityError(f"{version.ref} cannot be built again: its tag commit is {version.commit[:100]!r}, not a commit")


def fetch(store: Tracking, version: ModelVersion, to: Path) -> VersionRecords:
    """Fetch the files of a version into the folder ``to``.

    Raises IntegrityError if something that a rebuild needs is missing, or differs from what was registered.
    """
    missing = version.tags.missing(NEEDED)
    if missing:
        raise IntegrityError(f"{version.ref} cannot be built again: it has no {', '.join(missing)}")
    _check_names(version)
    files = {name: store.attachment(version, name, to) for name in (LOCK, PARAMS)}
    for name, registered in ((LOCK, version.tags.dvc_lock_sha256), (PARAMS, version.tags.params_sha256)):
        if registered is not None and manifest.sha256_file(files[name]) != registered:
            raise IntegrityError(f"the {name} of {version.ref} differs from the registered one")
    older = [
        f"registered before {tag} was recorded: {means}" for tag, means in SINCE.items() if tag in version.tags.missing(SINCE)
    ]
    return VersionRecords(version, files[LOCK], files[PARAMS], tuple(older))
