"""Records of a registered version and its tags in MLflow. Only this module knows the names of the tags.

MLflow holds a tag as text below ``remint.``. Names and texts must not change: old versions are read here too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError, model_serializer

from remint.errors import IntegrityError
from remint.records import DatasetVersion, MetricValue, Record
from remint.stores.mlflow.door import PREFIX

R = TypeVar("R", bound=Record)


class DataOrigin(Record):
    """Data of a version, in short: name, source and number of examples. "": not known."""

    name: str = ""
    source: str = ""
    raw_sha256: str = ""  # of the snapshot
    counts: dict[str, int] = {}  # examples in train, validation, held_out

    @classmethod
    def of(cls, dataset: DatasetVersion) -> DataOrigin:
        return cls(name=dataset.name, source=dataset.source, raw_sha256=dataset.raw_sha256, counts=dataset.counts)

    def block(self) -> dict[str, Any]:
        """Return the content of the tag ``data``, with the counts beside the other keys."""
        return {**{key: value for key, value in self.to_json().items() if value and key != "counts"}, **self.counts}


class VersionTags(Record):
    """Tags of a version: its origin, and the decisions about it.

    A field is the text of one tag. None: the version lacks it (older versions lack some), or a write leaves it unchanged.
    Unknown tags (a person's, a newer remint's) are kept beside the fields.
    """

    model_config = ConfigDict(extra="allow")

    # The training.
    key: str | None = None  # TrainedModel.key
    weights_sha256: str | None = None
    manifest_sha256: str | None = None  # of the bundle's manifest
    dataset: str | None = None  # digest of the DatasetVersion
    pipeline: str | None = None
    recipe: str | None = None  # JSON: ``settings``
    seed: str | None = None
    world_size: str | None = None
    best_step: str | None = None
    fingerprint: str | None = None  # JSON: ``made_on``

    # The job.
    data: str | None = None  # JSON: ``origin``
    metrics: str | None = None  # JSON: ``measurements``
    commit: str | None = None
    dirty: str | None = None  # "true" or "false"
    changed: str | None = None  # uncommitted paths, one per line
    overrides: str | None = None  # JSON: ``set_by_hand``
    reason: str | None = None
    dvc_lock_sha256: str | None = None
    params_sha256: str | None = None
    repository: str | None = None
    python: str | None = None
    packages_sha256: str | None = None
    not_installed: str | None = None  # pins of constraints.txt that were not installed, separated by blanks
    report_sha256: str | None = None
    tolerance: str | None = None  # JSON: ``tolerances``
    flow_run: str | None = None  # Prefect's
    calibration: str | None = None  # SHA-256 of the manifest of the calibration that is kept with the version

    # The registration.
    verified: str | None = None  # a sentence: how the stored bytes were loaded
    package_sha256: str | None = None  # of all files of the MLflow model

    # The decisions.
    verdict: str | None = None  # action of the newest row about the version
    ledger_hash: str | None = None  # of the newest row that is about the version or made it champion
    ledger_row: str | None = None  # number of that row
    decision_sha256: str | None = None
    rebuilt: str | None = None  # when, and with which result
    keep: str | None = None  # a person's reason to keep it

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> VersionTags:
        """Return the tags below ``remint.`` from all tags in MLflow."""
        return cls.model_validate({key.removeprefix(PREFIX): value for key, value in tags.items() if key.startswith(PREFIX)})

    def to_mlflow(self) -> dict[str, str]:
        return {PREFIX + key: value for key, value in self.to_json().items()}

    @model_serializer(mode="wrap")
    def _present(self, handler: Any) -> dict[str, str]:
        return {key: value for key, value in handler(self).items() if value is not None}

    def updated(self, newer: VersionTags) -> VersionTags:
        """Return these tags, replaced by those of ``newer`` where it has them."""
        return self.model_copy(update=newer.to_json())

    def changes(self, former: VersionTags) -> VersionTags:
        """Return the tags that are missing in ``former`` or differ there."""
        held = former.to_json()
        return VersionTags.model_validate({key: value for key, value in self.to_json().items() if held.get(key) != value})

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return those of the names for which the version has no tag."""
        held = self.to_json()
        return [name for name in names if name not in held]

    @property
    def settings(self) -> dict[str, Any]:
        """Recipe (Recipe.resolved())."""
        return self._block("recipe")

    @property
    def made_on(self) -> dict[str, Any]:
        """Hardware, threads and build of the training."""
        return self._block("fingerprint")

    @property
    def origin(self) -> DataOrigin:
        block = self._block("data")
        named = {key: block.pop(key, "") for key in ("name", "source", "raw_sha256")}
        return self._checked("data", DataOrigin, {**named, "counts": block})

    @property
    def measurements(self) -> dict[str, MetricValue]:
        return {name: self._checked("metrics", MetricValue, value) for name, value in self._block("metrics").items()}

    @property
    def set_by_hand(self) -> dict[str, str]:
        """Overrides by ``--set``."""
        return self._block("overrides")

    @property
    def tolerances(self) -> dict[str, dict[str, Any]]:
        """Allowed distance of each metric of a rebuild from the recorded one (promotion/tolerance.py)."""
        return self._block("tolerance")

    def _block(self, tag: str) -> dict[str, Any]:
        """Return the JSON object of a tag; {} if the version lacks it. Raises IntegrityError if the tag is not a JSON object."""
        text = getattr(self, tag) or "{}"
        try:
            block = json.loads(text)
        except ValueError:
            block = None
        if not isinstance(block, dict):
            raise IntegrityError(f"the tag {PREFIX}{tag} has the value {text[:100]!r}: remint did not write it")
        return block

    def _checked(self, tag: str, record: type[R], block: Any) -> R:
        try:
            return record.model_validate(block)
        except ValidationError as error:
            raise IntegrityError(f"the tag {PREFIX}{tag} is not a valid {record.__name__}: remint did not write it") from error


class ModelVersion(Record):
    """One registered version in MLflow."""

    name: str
    version: int
    key: str
    run_id: str
    weights_sha256: str
    dataset: str  # digest of the DatasetVersion
    commit: str
    dirty: bool
    created: str  # ISO 8601, UTC
    aliases: tuple[str, ...] = ()
    description: str = ""
    tags: VersionTags = VersionTags()

    @property
    def ref(self) -> str:
        return f"{self.name}/{self.version}"
