"""Metrics of the ledger's database: decisions, champions, what waits, the gate's budget, drift, and the verified chains.

A read costs two queries where nothing has changed: the rows of a model are read again only if it has new ones. The chains are
verified VERIFY_EVERY seconds, one model after the other, for about BUDGET seconds of a read.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily, Metric

from remint.errors import LedgerError, NotFoundError
from remint.maintenance.metrics.catalogue import METRICS, counter, gauge
from remint.promotion import monitoring, trials
from remint.runtime.home import Home
from remint.stores.ledger.chain import CHAMPION_ACTIONS, Action, Ledger, awaiting
from remint.stores.ledger.drift_checks import DriftCheck, DriftChecks
from remint.stores.ledger.row import LedgerRow
from remint.stores.open import open_drift_checks, open_ledger, open_serving_events

VERIFY_EVERY = 3600.0  # seconds between two verifications of a chain
BUDGET = 1.0  # seconds of one read that begin no further verification
WAITS: dict[str, Action] = {"approval": "awaiting_approval", "shadow": "awaiting_shadow"}

Values = dict[str, float]


@dataclass(frozen=True)
class Facts:
    """What the rows of one model say. ``lengths``: of its chains when they were read."""

    lengths: tuple[int, int]
    verdicts: Counter[str]
    gauges: Values  # by the metric's name, those with the label pipeline only
    waits: dict[str, tuple[int, float]]  # by what is awaited: how many, and since when the oldest


class LedgerMetrics:
    """Reader of one ledger. It keeps what it knows of each model between two reads."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._facts: dict[str, Facts] = {}
        self._verified: dict[str, tuple[float, float, int]] = {}  # monotonic and wall-clock time, and the faults

    def __call__(self) -> Iterator[Metric]:
        try:
            book, checks = open_ledger(self.home, make=False), open_drift_checks(self.home, make=False)
        except NotFoundError:
            return  # the first run makes it
        lengths, of_checks = book.lengths(), checks.lengths()
        for model, length in lengths.items():
            self._look(model, (length, of_checks.get(model, 0)), book, checks)
        self._verify(sorted(lengths), book, checks)
        yield from self._families()

    def _look(self, model: str, lengths: tuple[int, int], book: Ledger, checks: DriftChecks) -> None:
        known = self._facts.get(model)
        if known is not None and known.lengths == lengths:
            return
        try:
            self._facts[model] = _facts(lengths, book.rows(model), checks.of(model) if lengths[1] else [])
        except LedgerError:  # a damaged row, which the verification counts; a database that is away makes that fail too
            self._facts.pop(model, None)
            self._verified.pop(model, None)

    def _verify(self, models: Sequence[str], book: Ledger, checks: DriftChecks) -> None:
        began, never = time.monotonic(), (-VERIFY_EVERY, 0.0, 0)
        for model in sorted(models, key=lambda name: self._verified.get(name, never)[0]):
            last = self._verified.get(model)
            now = time.monotonic()
            if now - began > BUDGET or (last is not None and now - last[0] < VERIFY_EVERY):
                return
            events = open_serving_events(self.home, make=False)
            faults = len([*book.verify(model), *checks.verify(model), *events.verify(model)])
            self._verified[model] = time.monotonic(), time.time(), faults

    def _families(self) -> Iterator[Metric]:
        decisions, count, since = (
            counter("remint_decisions_total"),
            gauge("remint_awaiting"),
            gauge("remint_awaiting_since_timestamp_seconds"),
        )
        gauges: dict[str, GaugeMetricFamily] = {}
        for model, facts in self._facts.items():
            for verdict, rows in facts.verdicts.items():
                decisions.add_metric([model, verdict], rows)
            for what, (versions, oldest) in facts.waits.items():
                count.add_metric([model, what], versions)
                if versions:
                    since.add_metric([model, what], oldest)
            for name, value in facts.gauges.items():
                gauges.setdefault(name, gauge(name)).add_metric([model], value)
        faults, verified = gauge("remint_ledger_faults"), gauge("remint_ledger_verified_timestamp_seconds")
        for model, (_, at, found) in self._verified.items():
            faults.add_metric([model], found)
            verified.add_metric([model], at)
        yield from (decisions, count, since, faults, verified, *(gauges[name] for name in METRICS if name in gauges))


def _facts(lengths: tuple[int, int], rows: Sequence[LedgerRow], checks: Sequence[DriftCheck]) -> Facts:
    found: Values = {"remint_ledger_rows": len(rows)}
    last = rows[-1]
    made = next((row for row in reversed(rows) if row.action in CHAMPION_ACTIONS), None)
    if made is not None and last.champion_after is not None:
        found["remint_champion_version"] = last.champion_after
        found["remint_champion_since_timestamp_seconds"] = _seconds(made.at)
    judged = next((row for row in reversed(rows) if row.evidence), None)  # "" for a person's act
    if judged is not None:
        found["remint_last_judgement_timestamp_seconds"] = _seconds(judged.at)
    tried = next((row for row in reversed(rows) if row.trial), None)
    if tried is not None:
        (trial,) = trials.of_rows([tried])
        found["remint_gate_tries"] = trial.number
        found["remint_gate_budget_left_ratio"] = max(0.0, 1.0 - trial.spent)
    if checks:
        opened = monitoring.last_alarm(checks)
        found["remint_drift_check_timestamp_seconds"] = _seconds(checks[-1].at)
        found["remint_drift_alarm"] = float(opened is not None and monitoring.closed_by(opened, rows) is None)
    waiting = {what: awaiting(rows, action) for what, action in WAITS.items()}
    waits = {what: (len(each), min((_seconds(row.at) for row in each), default=0.0)) for what, each in waiting.items()}
    return Facts(lengths, Counter(row.action for row in rows), found, waits)


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
