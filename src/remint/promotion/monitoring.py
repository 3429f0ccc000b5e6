"""Checks of a champion on new data, and the alarm for drift (remint monitor, and the trigger triggers.drift).

A check compares today's training split with the one that the champion was trained on, and measures the champion on today's
held-out split. Its number among the checks of this champion gives its level (evaluation/alarm.py). One alarm is open at a time.
The first verdict in the ledger after it closes it, so what closed an alarm is derived and never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from remint.errors import ChampionChanged, TrackingError
from remint.evaluation import alarm
from remint.promotion import champion
from remint.promotion.retraining import Retraining, timed
from remint.records import Drift, Record
from remint.runtime.home import Home
from remint.settings.triggers import DriftTrigger
from remint.stores.ledger.chain import describe
from remint.stores.ledger.drift_checks import DriftCheck, now
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion
from remint.stores.open import open_drift_checks, open_ledger

CLOSES = ("promoted", "kept", "refused", "rejected", "rolled_back")  # a version that awaits something is not settled yet

State = Literal["nothing_to_judge", "no_new_data", "not_comparable", "no_drift", "drifted", "still_drifted", "cooldown"]


class Reign(NamedTuple):
    """A champion, and the sequence of the row that made it one."""

    champion: int
    since: int


class Monitoring(Record):
    """Answer of one look at a champion."""

    pipeline: str
    state: State
    text: str  # one line
    check: DriftCheck | None = None  # None: nothing was compared, so no level was spent


def reign(home: Home, pipeline: str) -> Reign | None:
    """Return the champion; None if there is none."""
    book = open_ledger(home)
    last, made = book.last(pipeline), book.made_champion(pipeline)
    return Reign(last.champion_after, made.sequence) if last and made and last.champion_after is not None else None


def nothing_to_judge(pipeline: str) -> Monitoring:
    return Monitoring(pipeline=pipeline, state="nothing_to_judge", text=f"{pipeline} has no champion: nothing to judge yet")


def last_alarm(checks: Sequence[DriftCheck]) -> DriftCheck | None:
    """Return the newest check that opened an alarm."""
    return next((check for check in reversed(checks) if check.alarm), None)


def closed_by(opened: DriftCheck, rows: Sequence[LedgerRow]) -> LedgerRow | None:
    """Return the verdict that closed an alarm; None if it is open. ``rows``: of the model, oldest first, from ``after`` on."""
    return next((row for row in rows if row.sequence > opened.after and row.action in CLOSES), None)


def open_alarm(home: Home, pipeline: str) -> DriftCheck | None:
    """Return the check whose alarm is open; None if none is."""
    opened = last_alarm(open_drift_checks(home).of(pipeline))
    if opened is None or closed_by(opened, open_ledger(home).since(pipeline, opened.after)):
        return None
    return opened


def known(job: Retraining, of: Reign) -> Monitoring | None:
    """Return the answer if today's data were checked before, or are those that the champion was trained on; else None."""
    version = job.tracking.version(f"{job.pipeline}/{of.champion}")
    if version.dataset == job.dataset.digest:
        return _same(job, f"no new data: today's are those that {version.ref} was trained on")
    before = _checks_of(job, of)
    if before and before[-1].dataset == job.dataset.digest:
        return _same(job, f"no new data since check {before[-1].number} of {version.ref} on {before[-1].at[:10]}")
    return None


def check(job: Retraining, of: Reign) -> Monitoring:
    """Measure champion and drift on today's data, record the check, and say what it found.

    Raises ChampionChanged if there is another champion by now, or if another check was faster.
    """
    version = job.tracking.version(f"{job.pipeline}/{of.champion}")
    with timed(job, "monitor"):
        found = champion.monitored(job, version)
    drift = found.drift
    if drift is None or drift.p is None:
        if drift is not None and drift.comparable and not drift.added + drift.removed:
            return _same(job, f"no new data: {drift.summary}")
        why = drift.summary if drift is not None else found.unavailable_reason or found.obstacle or "the drift is not known"
        return Monitoring(pipeline=job.pipeline, state="not_comparable", text=f"{version.ref} was not judged: {why}")
    if reign(job.home, job.pipeline) != of:
        raise ChampionChanged(f"{version.ref} is no longer the champion: run remint monitor {job.pipeline} again")
    answer = _recorded(job, of, version, drift, found)
    assert answer.check is not None, "it was recorded"
    _show(job, version, answer.check)
    return answer


def _recorded(job: Retraining, of: Reign, version: ModelVersion, drift: Drift, found: champion.ChampionEvidence) -> Monitoring:
    """Append the check to the ledger's database, with an alarm if it is due."""
    checks, rows = open_drift_checks(job.home).of(job.pipeline), job.ledger.rows(job.pipeline)
    number = len(_checks_of(job, of)) + 1
    state = _state(drift, number, last_alarm(checks), rows, job.settings.triggers.drift or DriftTrigger(), datetime.now(UTC))
    assert drift.p is not None, "it was tested"
    made = DriftCheck(
        model=job.pipeline,
        champion=of.champion,
        reign=of.since,
        number=number,
        dataset=drift.present,
        added=drift.added,
        removed=drift.removed,
        p=drift.p,
        level=alarm.level(number),
        alarm=state == "drifted",
        after=_after(job, of, rows),
        summary=drift.summary,
        metrics=dict(found.evidence.report.metrics) if found.evidence else {},
        at=now(),
    )
    if open_drift_checks(job.home).append(made) is None:
        raise ChampionChanged(f"another check of {version.ref} was faster: run remint monitor {job.pipeline} again")
    return Monitoring(pipeline=job.pipeline, state=state, text=_text(state, version, made), check=made)


def _state(
    drift: Drift, number: int, opened: DriftCheck | None, rows: Sequence[LedgerRow], settings: DriftTrigger, at: datetime
) -> State:
    """Return what a check found. Pure. ``opened``: the newest alarm; ``rows``: of the ledger."""
    if not alarm.rises(drift, number):
        return "no_drift"
    if opened is None:
        return "drifted"
    if closed_by(opened, rows) is None:
        return "still_drifted"
    since = at - datetime.fromisoformat(opened.at)
    resting = timedelta(0) <= since < timedelta(seconds=settings.rest)  # an alarm of the future: the clock was wrong
    return "cooldown" if resting else "drifted"


def _after(job: Retraining, of: Reign, rows: Sequence[LedgerRow]) -> int:
    """Return the sequence behind which a verdict closes an alarm: before the newest one on these very data, if there is one.

    A retraining on data that were judged against this champion writes no row (settlement.settled_before).
    """
    here = {version.version for version in job.tracking.versions(job.pipeline) if version.dataset == job.dataset.digest}
    judged = [row for row in rows if row.action in CLOSES and row.champion_after == of.champion and row.version in here]
    return judged[-1].sequence - 1 if judged else rows[-1].sequence if rows else 0


def _checks_of(job: Retraining, of: Reign) -> list[DriftCheck]:
    return [each for each in open_drift_checks(job.home).of(job.pipeline) if each.reign == of.since]


def _same(job: Retraining, text: str) -> Monitoring:
    return Monitoring(pipeline=job.pipeline, state="no_new_data", text=text)


def _text(state: State, version: ModelVersion, made: DriftCheck) -> str:
    against = f"p {made.p:.2g} {'<=' if state != 'no_drift' else '>'} {made.level:.2g}"
    found = {
        "no_drift": "no drift",
        "drifted": "drift: an alarm is open",
        "still_drifted": "drift: an alarm was open already",
        "cooldown": "drift, in the cooldown of the alarm before",
    }[state]
    return f"check {made.number} of {version.ref}: {found} ({against}); {made.summary}"


def _show(job: Retraining, version: ModelVersion, made: DriftCheck) -> None:
    """Add the check to the curves of the champion's run in MLflow. The ledger's database has it already."""
    values = {f"monitor_{name}": value.value for name, value in made.metrics.items()}
    try:
        job.tracking.log_metrics(version.run_id, [{"step": made.number, "monitor_p": made.p or 0.0, **values}])
    except TrackingError as error:
        job.tell("notice", text=f"MLflow does not show this check: {error}")


def story(opened: DriftCheck, rows: Sequence[LedgerRow]) -> str:
    """Say since when there is an alarm, and what closed it."""
    closing = closed_by(opened, rows)
    end = f"closed: {describe(closing)}" if closing else "open"
    return f"drift since {opened.at[:10]}, {end}"
