"""Answer of ``remint why``: the origin of a version beside that of the champion before it, and every decision about it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

from remint.errors import NotFoundError, VersioningError
from remint.promotion.decision import RuleResult
from remint.promotion.page import since
from remint.promotion.projection import current_version
from remint.promotion.queries import VersionEntry, kept_decision, kept_drift
from remint.records import MetricValue, Record
from remint.runtime.home import Home
from remint.stores import git
from remint.stores.ledger.chain import CHAMPION_ACTIONS
from remint.stores.ledger.row import LedgerRow
from remint.stores.ledger.serving_events import ServingEvent
from remint.stores.mlflow import ModelVersion, VersionTags
from remint.stores.open import open_ledger, open_serving_events, open_tracking

Section = tuple[str, list[str]]


class FormerChampion(VersionEntry):
    """The champion before a version."""

    lineage: VersionTags


class Approver(Record):
    """The person or gate that made a version champion."""

    who: str
    action: Literal["promoted", "rolled_back"]
    at: str  # ISO 8601, UTC
    why: str


class Why(VersionEntry):
    """Answer of ``remint why --json``."""

    report: str  # path of the page
    lineage: VersionTags
    serving_sha256: str  # of the manifest of all served files
    former: FormerChampion | None
    code: str  # git diff --stat from the former's commit
    drift: str | None  # a sentence
    compared: tuple[RuleResult, ...]  # of the gate's last decision
    approver: Approver | None  # None: never champion
    decisions: tuple[LedgerRow, ...]  # oldest first
    served: tuple[ServingEvent, ...] = ()  # events about it on the hosts that serve, oldest first


def why(home: Home, ref: str) -> Why:
    """Return the lineage of a version beside that of the champion before it, and every decision about it."""
    return explain(home, current_version(home, ref))


def explain(home: Home, version: ModelVersion, against: int | None = None) -> Why:
    """Return ``why`` of a version, and write nothing. ``against``: compare with this version, not with the champion before it."""
    store, rows = open_tracking(home), open_ledger(home).about(version.name, version.version)
    before = _champion_before(rows, version.version) if against is None else against
    former = None
    if before is not None:
        with suppress(NotFoundError):  # it was deleted: its lineage is lost
            former = store.version(f"{version.name}/{before}")
    page = home.report(version.name, version.version) / "report.html"
    served = open_serving_events(home).about(version.name, version.version)
    since.refresh(page, rows, served)
    drift, judged = kept_drift(home, version), kept_decision(home, version)
    return Why(
        **VersionEntry.fields_of(version),
        report=str(page) if page.exists() else f"report.html of MLflow's run {version.run_id}",
        lineage=version.tags,
        serving_sha256=version.tags.manifest_sha256 or "",
        former=FormerChampion(**VersionEntry.fields_of(former), lineage=former.tags) if former else None,
        code=_code_change(home, former, version),
        drift=drift.summary if drift and before is not None and against is None else None,
        compared=tuple(rule for rule in judged.rules if rule.metric) if judged else (),
        approver=_approver(rows, version.version),
        decisions=tuple(rows),
        served=tuple(served),
    )


def _champion_before(rows: list[LedgerRow], version: int) -> int | None:
    """Return the champion at the time when the version was first judged."""
    earlier = [row.champion_before for row in rows if row.version == version and row.champion_before not in (None, version)]
    return earlier[0] if earlier else None


def _approver(rows: list[LedgerRow], version: int) -> Approver | None:
    """Return the newest approver of the version; None if it was never champion."""
    made = [row for row in rows if row.action in CHAMPION_ACTIONS and row.champion_after == version]
    return Approver.model_validate({key: getattr(made[-1], key) for key in Approver.model_fields}) if made else None


def _code_change(home: Home, former: ModelVersion | None, version: ModelVersion) -> str:
    """Return `git diff --stat` between the two commits; "" if they are equal; a note if a commit is missing."""
    if former is None or former.commit == version.commit:
        return ""
    if not (git.is_commit(former.commit) and git.is_commit(version.commit)):
        return "(a commit in MLflow is not a valid commit id)"
    try:
        return git.run_git(home.repository, "diff", "--stat", former.commit, version.commit).rstrip()
    except VersioningError:
        return f"(this clone does not hold both {former.commit[:10]} and {version.commit[:10]})"


def sections(answer: Why) -> list[Section]:
    """Return the answer as text: title and lines of each section."""
    tags, former = answer.lineage, answer.former
    overrides = tags.set_by_hand
    state = " (uncommitted work)" if answer.dirty else ""
    aliases = f", {' and '.join(answer.aliases)}" if answer.aliases else ""
    baseline = former.ref if former else "no earlier champion"
    return [
        (
            f"{answer.ref}{aliases}",
            [
                f"registered {answer.created[:19]} UTC",
                f"weights SHA-256 {answer.weights_sha256}",
                f"served files, SHA-256 of their manifest {answer.serving_sha256}",
                f"compared with {baseline}",
                f"report {answer.report}",
                *([f"rebuilt {tags.rebuilt}"] if tags.rebuilt is not None else []),
            ],
        ),
        (
            "Data",
            _changes(_data(answer, tags), _data(former, former.lineage) if former else None)
            + ([answer.drift] if answer.drift else []),
        ),
        ("Settings", _changes(_flat(tags.settings), _flat(former.lineage.settings) if former else None)),
        *([("Set by hand", [f"{key}={value}" for key, value in overrides.items()])] if overrides else []),
        ("Code", [f"commit {answer.commit}{state}", *(answer.code.splitlines() or (["unchanged"] if former else []))]),
        ("Metrics", _metrics(answer)),
        ("Approved", _approval(answer)),
        ("Decisions", [line for row in answer.decisions for line in _decision(row)]),
        *([("Served", [_served(event) for event in answer.served])] if answer.served else []),
        ("Made on", [f"{key}: {value}" for key, value in tags.made_on.items()]),
    ]


def _data(version: VersionEntry, tags: VersionTags) -> dict[str, Any]:
    return {"version": version.dataset_version, **tags.origin.block()}


def _approval(answer: Why) -> list[str]:
    """Return lines on the approver, or on the newest verdict if there is none."""
    approver = answer.approver
    if approver is None:
        verdict = answer.decisions[-1].action.replace("_", " ") if answer.decisions else "not judged yet"
        return [f"no: {verdict}"]
    how = "promoted" if approver.action == "promoted" else "rolled back to"
    return [f"by {approver.who}, {approver.at[:19]} UTC ({how})", *(f"  {line}" for line in approver.why.splitlines())]


def _flat(block: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in block.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _changes(now: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """Return a line for each key; with ``before``, one for each key that changed, with both values."""
    if before is None:
        return [f"{key}: {value}" for key, value in now.items()]
    changed = [
        f"{key}: {before.get(key)} -> {now.get(key)}" for key in sorted({*now, *before}) if now.get(key) != before.get(key)
    ]
    return changed or ["unchanged"]


def _metrics(answer: Why) -> list[str]:
    """Return a line for each metric, beside the champion's on the same data if the gate measured it, else at its registration."""

    def text(value: MetricValue | None) -> str:
        return value.text() if value else "not measured"

    now, before = answer.metrics, answer.former.metrics if answer.former else {}
    lines = []
    for name in sorted({*now, *before}):
        rival = next((rule.champion for rule in answer.compared if rule.metric == name and rule.champion), None)
        champion = (
            f"   champion, same data: {text(rival)}" if rival else f"   champion at its registration: {text(before.get(name))}"
        )
        lines.append(f"{name}: {text(now.get(name))}" + (champion if rival or before else ""))
    return lines


def _served(event: ServingEvent) -> str:
    return f"{event.at[:19]} UTC, {event.host}: {event.event}: {event.why}"


def _decision(row: LedgerRow) -> list[str]:
    return [f"{row.at[:19]} UTC, {row.who}: {row.action}", *(f"  {line}" for line in row.why.splitlines())]
