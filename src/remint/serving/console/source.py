"""What the console shows of the rooms above serving/: records, and the protocol that fetches them.

The implementation (promotion/console.py) is handed in, because serving/ may not import promotion/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from remint.records import MetricValue
from remint.stores.ledger.drift_checks import DriftCheck
from remint.stores.ledger.row import LedgerRow
from remint.stores.ledger.serving_events import ServingEvent
from remint.stores.mlflow import ModelVersion

Section = tuple[str, Sequence[str]]  # title and lines


@dataclass(frozen=True)
class Outlook:
    """What the scheduler knows of one pipeline."""

    next_start: datetime | None = None
    note: str = ""  # why there is no next start, or what it depends on
    failure: str = ""  # message of the newest run, if it failed


@dataclass(frozen=True)
class Concern:
    """One thing that needs a person."""

    kind: str  # two words at most
    text: str
    version: int | None = None  # the page that shows more; None: the model's


@dataclass(frozen=True)
class Night:
    """One version in the order of judgement."""

    version: int
    at: str  # ISO 8601, UTC
    action: str  # of the newest ledger row about it
    values: Mapping[str, MetricValue]  # at its registration


@dataclass(frozen=True)
class Entry:
    """One pipeline."""

    name: str
    champion: int | None
    since: str  # when it became champion, ISO 8601; "": there is none
    last: LedgerRow | None
    metric: str  # the one that the gate asks to improve; "": none
    nights: Sequence[Night]  # oldest first
    outlook: Outlook
    concerns: Sequence[Concern]


@dataclass(frozen=True)
class History:
    """Everything about the versions of one model, newest first."""

    entry: Entry
    versions: Sequence[ModelVersion]
    rows: Sequence[LedgerRow]
    events: Sequence[ServingEvent]
    checks: Sequence[DriftCheck]


@dataclass(frozen=True)
class Verification:
    """Result of the check of a ledger: its chain, its hashes in MLflow, the kept decisions and the serving events."""

    rows: int
    hashes: int  # in MLflow, that were compared
    findings: Sequence[str]


@dataclass(frozen=True)
class Rule:
    """One rule of the gate's newest decision on a version."""

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Story:
    """One version: its origin beside that of another one, and the decisions about it."""

    version: ModelVersion
    champion: int | None
    newest: str  # hash of the model's newest row; "": there is none
    against: int | None  # version that the sections compare it with
    sections: Sequence[Section]
    rules: Sequence[Rule]
    rows: Sequence[LedgerRow]  # about it, newest first


class Source(Protocol):
    """Fetches what the pages show, and carries out what a person decides. Raises RemintErrors."""

    def names(self) -> Sequence[str]:
        """Return the pipelines of params.yaml, and the models in the ledger without one."""
        ...

    def overview(self) -> Sequence[Entry]:
        """Return every pipeline."""
        ...

    def history(self, name: str, count: int | None) -> History:
        """Return the newest ``count`` versions and rows of one model; None: all."""
        ...

    def verify(self, name: str) -> Verification:
        """Check the ledger of one model."""
        ...

    def story(self, name: str, version: int, against: int | None) -> Story:
        """Return one version. ``against``: the version to compare with; None: the champion before it."""
        ...

    def report(self, name: str, version: int) -> bytes | None:
        """Return the report page of a version; None if there is none."""
        ...

    def promote(self, name: str, version: int, reason: str, against: str, who: str, newest: str) -> LedgerRow:
        """Promote a version by hand. ``against``: "" for the champion that it was judged against, a number, or "none".

        ``newest``, here and below: hash of the ledger's newest row that the person saw. Raises DecidedMeanwhile if it is not.
        """
        ...

    def reject(self, name: str, version: int, reason: str, who: str, newest: str) -> LedgerRow:
        """Reject a version by hand."""
        ...

    def rollback(self, name: str, reason: str, who: str, newest: str) -> LedgerRow:
        """Make the champion before the present one the champion again."""
        ...
