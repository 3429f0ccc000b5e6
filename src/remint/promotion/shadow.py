"""Judge the versions that await shadow, by their answers to copies of requests.

    answers reached    the shadow's rules are added to the first decision, which holds against the same champion
    deadline passed    refused: evidence is missing
    else               it goes on

Another champion, or a person's decision, ends the wait: the ledger refuses the row, and the next retraining judges anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from remint.errors import ChampionChanged, IntegrityError, NotFoundError
from remint.promotion import decide
from remint.promotion.decision import Decision, RuleResult, ShadowTerms, Verdict
from remint.promotion.kept_decisions import DECISION, PENDING, of_row
from remint.promotion.page import since, write
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.promotion.rulings import Ruling, awaits_approval, evidence, required
from remint.promotion.settlement import Announce
from remint.promotion.shadow_report import REPORT, ShadowReport, summarise
from remint.records import MetricValue
from remint.runtime.home import Home
from remint.settings.judging import SHADOW_METRICS
from remint.settings.shadow import ServingSettings
from remint.stores.ledger.chain import awaiting
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion, VersionTags
from remint.stores.open import open_ledger, open_serving_events, open_shadow_counts, open_tracking

Tell = Callable[[str], None]  # gets a line for a person


def settings_of(home: Home, row: LedgerRow) -> ServingSettings | None:
    """Return by which settings a version awaits shadow; None if its decision is not kept yet."""
    decision = of_row(home, row)
    return decision.terms.serving if decision and decision.terms else None


@dataclass(frozen=True)
class Waiting:
    """A version that awaits shadow, and what is known of it."""

    row: LedgerRow
    first: Decision  # by which it awaits shadow
    report: ShadowReport
    damaged: str | None  # why the counts or the version cannot be read; None: they can
    refusals: tuple[str, ...]  # what servers say that do not ask it

    @property
    def settings(self) -> ServingSettings:
        return _terms(self.first).serving

    @property
    def deadline(self) -> datetime:
        return datetime.fromisoformat(self.row.at) + timedelta(seconds=self.settings.seconds)

    @property
    def is_due(self) -> bool:
        return self.damaged is not None or self.report.n >= self.settings.answers or datetime.now(UTC) >= self.deadline

    def text(self) -> str:
        until = self.deadline.isoformat(sep=" ", timespec="minutes")[:16]
        said = f"awaits shadow until {until} UTC: {self.report.text()} of {self.settings.answers:,}"
        return "; ".join([said, *self.refusals])


def judge_waiting(home: Home, model: str, tell: Tell, announce: Announce) -> list[LedgerRow]:
    """Judge each version of a model that awaits shadow, if its answers are there or its deadline has passed.

    Return the new rows. ``tell`` gets a line about each version.
    """
    rows = open_ledger(home).rows(model)
    for row in {row.version: row for row in rows}.values():
        _finish(home, row, tell, announce)
    settled = []
    for row in awaiting(rows, "awaiting_shadow"):
        ref, first = f"{model}/{row.version}", of_row(home, row)
        if first is None:
            tell(f"{ref} awaits shadow, and its decision is not kept: run `remint run {model}`")
            continue
        waiting = _read(home, row, first)
        if not waiting.is_due:
            tell(f"{ref} {waiting.text()}")
            continue
        try:
            found = _settle(home, waiting, tell, announce)
        except ChampionChanged as error:  # a person or another process was faster
            tell(f"{ref} awaits shadow, and was not judged: {error}")
            continue
        why = found.why.splitlines()[0] if found.action == "refused" else f"it answered {waiting.report.text()}"
        tell(f"{ref} awaited shadow; {found.action.replace('_', ' ')}: {why}")
        settled.append(found)
    return settled


def _read(home: Home, row: LedgerRow, first: Decision) -> Waiting:
    """Read what the servers counted since a row by which a version awaits shadow."""
    assert row.champion_before is not None, "without a champion there is no shadow"
    parts, damaged = [], None
    try:
        parts = open_shadow_counts(home).of(row.hash)
        open_tracking(home).version(f"{row.model}/{row.version}")
    except (IntegrityError, NotFoundError) as error:  # not found: it was deleted, and no answer can come
        damaged = str(error)
    newest = {event.host: event for event in open_serving_events(home).about(row.model, row.version)}
    refusals = tuple(f"{event.host} refused it: {event.why}" for event in newest.values() if event.event == "refused")
    return Waiting(row, first, summarise(row.model, row.version, row.champion_before, row.hash, parts), damaged, refusals)


def decide_again(first: Decision, report: ShadowReport, damaged: str | None = None, refusals: Sequence[str] = ()) -> Decision:
    """Return the decision on a version that awaited shadow. Pure.

    ``first``: the decision by which it awaits it. ``damaged``: what is wrong with its bytes or its counts; None: nothing.
    ``refusals``: what servers say that do not ask it.
    """
    rulings = [evidence("broken", damaged)] if damaged else list(_rulings(first, report, refusals))
    wait = [rule for rule in first.rules if rule.rule == "shadow"]
    earlier = [reason for reason in first.reasons if reason not in {rule.reason for rule in wait}]
    broken = [ruling.result.reason for ruling in rulings if ruling.state == "broken"]
    verdict: Verdict = "refused" if broken else "promoted"
    if verdict == "promoted" and _terms(first).promotion.approval == "manual":
        verdict = "awaiting_approval"
        rulings.append(awaits_approval(first.model, first.challenger))
    rules = (*(rule for rule in first.rules if rule.rule != "shadow"), *(ruling.result for ruling in rulings))
    return Decision(
        model=first.model,
        verdict=verdict,
        challenger=first.challenger,
        champion=first.champion,
        rules=rules,
        reasons=tuple(broken or [*earlier, *(ruling.result.reason for ruling in rulings)]),
        evidence={**first.evidence, "shadow": report.digest},
    )


def _rulings(first: Decision, report: ShadowReport, refusals: Sequence[str]) -> Iterator[Ruling]:
    """Yield the rules on a shadow. Without a bound on its error rate no copy may fail."""
    serving, bounds = _terms(first).serving, _terms(first).promotion.shadow
    said = f"{report.text()} (shadow report {report.digest[:12]})"
    if report.n < serving.answers:
        cause = "; ".join(refusals) or "Does `remint serve` run?"
        yield evidence("broken", f"{said}: it needs {serving.answers:,} within {serving.deadline}. {cause}")
        return
    yield _passed(f"answered {said}")
    for metric in SHADOW_METRICS:
        value = report.metrics.get(metric)
        if metric in bounds:
            yield required(metric, bounds[metric], value, "no copy has such values")
        elif metric == "shadow_error_rate" and report.errors:
            failed = ", ".join(f"{count} x {kind}" for kind, count in report.errors.items())
            reason = f"the champion answered these, it did not: {failed}. promotion.require.{metric} allows some"
            yield Ruling("broken", RuleResult(rule="shadow", passed=False, reason=reason, metric=metric, challenger=value))
        elif value is not None:
            yield _passed(f"{metric} {value.text()}, without a bound", metric, value)


def _passed(reason: str, metric: str | None = None, value: MetricValue | None = None) -> Ruling:
    return Ruling("holds", RuleResult(rule="shadow", passed=True, reason=reason, metric=metric, challenger=value))


def _terms(decision: Decision) -> ShadowTerms:
    assert decision.terms is not None, "a decision by which a version awaits shadow has its terms"
    return decision.terms


def _settle(home: Home, waiting: Waiting, tell: Tell, announce: Announce) -> LedgerRow:
    """Decide, write the row, then update everything that follows it. Raises ChampionChanged if nothing was written."""
    row, first, report = waiting.row, waiting.first, waiting.report
    decision = decide_again(first, report, waiting.damaged, waiting.refusals)
    if decision.verdict != "refused":
        try:  # since it was registered its bytes may have been damaged, or it was deleted
            decide.verify(home, open_tracking(home).version(f"{row.model}/{row.version}"), load=False)
        except (IntegrityError, NotFoundError) as error:
            decision = decide_again(first, report, str(error))
    folder = home.report(row.model, row.version)
    folder.mkdir(parents=True, exist_ok=True)
    report.write(folder / REPORT)
    decision.write(folder / PENDING)
    settled = open_ledger(home).append(
        row.model,
        decision.verdict,
        row.version,
        champion_after=row.version if decision.verdict == "promoted" else decision.champion,
        who="gate",
        why="\n".join(decision.reasons),
        evidence=row.evidence,
        decision=decision.digest,
        expected_champion=decision.champion,
        settles=row.hash,
    )
    _update(home, decision, settled, tell, announce)
    return settled


def _finish(home: Home, row: LedgerRow, tell: Tell, announce: Announce) -> None:
    """Finish the updates of a row that was settled here by a process that died after it."""
    folder = home.report(row.model, row.version)
    if not (folder / PENDING).exists() or not (folder / REPORT).exists():
        return
    decision = of_row(home, row)
    if decision is not None and "shadow" in decision.evidence:
        _update(home, decision, row, tell, announce)


def _update(home: Home, decision: Decision, row: LedgerRow, tell: Tell, announce: Announce) -> None:
    """Update everything that follows a row. Safe to repeat."""
    folder, tracking = home.report(row.model, row.version), open_tracking(home)
    sync_mlflow_to_ledger(home, row.model)
    rows, events = (open_ledger(home).about(row.model, row.version), open_serving_events(home).about(row.model, row.version))
    since.refresh(folder / write.NAME, rows, events)
    version = None
    with suppress(NotFoundError):  # it was deleted: MLflow has no place for these
        version = tracking.version(f"{row.model}/{row.version}")
    if version is not None:
        _keep(home, version, decision, row, tell, announce)
    (folder / PENDING).rename(folder / DECISION)


def _keep(home: Home, version: ModelVersion, decision: Decision, row: LedgerRow, tell: Tell, announce: Announce) -> None:
    """Write the decision beside the version in MLflow, and tell it."""
    folder, tracking = home.report(row.model, row.version), open_tracking(home)
    page = (
        {write.NAME: folder / write.NAME} if (folder / write.NAME).exists() else {}
    )  # judged on another machine: it has the page
    tracking.attach(version, {DECISION: folder / PENDING, REPORT: folder / REPORT, **page})
    tracking.set_tags(version, VersionTags(decision_sha256=decision.digest))
    announce(home, version, decision, row, tell)
