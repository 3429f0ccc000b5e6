"""Rules of the gate: each takes a case and returns a ruling with its reason and numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

from remint.evaluation.evidence import Evidence
from remint.promotion import comparable
from remint.promotion.comparable import Part
from remint.promotion.decision import RuleResult
from remint.promotion.leaked import leakage_reason
from remint.promotion.paired import Difference, difference, error, seed_margin
from remint.promotion.suggestion import suggest
from remint.promotion.trials import Night, Past, Trial, draws, following
from remint.records import Leakage, MetricValue
from remint.settings.judging import MIN_SEEDS, Bound, Improve, PromotionSettings
from remint.settings.shadow import ServingSettings
from remint.stores.ledger.seen import sha256
from remint.stores.ledger.spreads import SeedSpread

GUARD_CONFIDENCE = 0.95
LARGEST = 1e100  # gain that can be pooled with others: its square is a number

State = Literal["holds", "open", "broken"]


@dataclass(frozen=True)
class Ruling:
    state: State
    result: RuleResult


@dataclass(frozen=True)
class Case:
    """Evidence, rules and circumstances of one decision."""

    model: str
    challenger: Evidence
    challenger_version: int
    champion: Evidence | None
    champion_version: int | None
    rules: PromotionSettings
    spread: SeedSpread | None
    recipe: str  # SeedSpread.recipe of the challenger
    dirty: str | None
    person: str | None
    incomparable: str | None
    training_failure: str | None
    champion_leakage: Leakage | None
    obstacle: str | None
    part: Part | None
    past: Past
    trial: Trial | None = None  # of with_trial

    @property
    def compared(self) -> Evidence:
        """Evidence of the challenger on the examples on which the champion was measured."""
        return self.part.challenger if self.part else self.challenger

    @property
    def level(self) -> float:
        """Error level: probability at which chance alone may pass for a difference, over all comparisons together."""
        return 1.0 - (self.rules.improve.confidence if self.rules.improve else GUARD_CONFIDENCE)

    @property
    def comparisons(self) -> int:
        return len(self.rules.never_worse) + (len(self.rules.improve.metrics) if self.rules.improve else 0)

    @property
    def is_first_version(self) -> bool:
        return self.champion_version is None

    @property
    def is_champion(self) -> bool:
        """True if the challenger is the champion: same weights, data and settings."""
        keys = self.champion is not None and self.challenger.report.model_key == self.champion.report.model_key
        return not self.is_first_version and (keys or self.challenger_version == self.champion_version)


def evidence(state: State, reason: str) -> Ruling:
    return Ruling(state, RuleResult(rule="evidence", passed=False, reason=reason))


def awaits_approval(model: str, version: int) -> Ruling:
    wait = f"promotion.approval is manual: remint promote {model}/{version} --reason '..', or remint reject"
    return Ruling("open", RuleResult(rule="approval", passed=False, reason=wait))


def awaits_shadow(serving: ServingSettings) -> Ruling:
    wait = f"it first answers {serving.answers:,} copies of requests to `remint serve`, within {serving.deadline}"
    return Ruling("open", RuleResult(rule="shadow", passed=False, reason=wait))


def schema(case: Case) -> Ruling:
    """Return whether a champion of another schema can describe enough of today's examples for a comparison."""
    if case.part is not None and case.part.described >= comparable.MIN_PART * case.part.of:
        seen = f"compared on the {case.part.text()} that the champion's schema can describe"
        return Ruling("holds", RuleResult(rule="schema", passed=True, reason=seen))
    why = case.obstacle
    if case.part is not None:
        why = f"the champion's schema can describe only {case.part.text()}"
    decide = f"remint promote {case.model}/{case.challenger_version} --reason '..', or remint reject"
    return Ruling("open", RuleResult(rule="schema", passed=False, reason=f"{why}. A person decides: {decide}"))


def suggested(case: Case, metrics: Collection[str]) -> str:
    """Return the end of a reason: bounds that follow from what a first version reached. "" if there are none."""
    bounds = suggest(case.challenger.report, metrics)
    return f". {bounds}" if bounds else ""


def require(case: Case, metric: str) -> Ruling:
    value, problem = comparable.measured(case.challenger, metric, "the challenger")
    ruling = required(metric, case.rules.require[metric], value, problem)
    if not case.is_first_version or ruling.state == "holds":
        return ruling
    reason = f"no champion, and {ruling.result.reason}{suggested(case, [metric])}"
    return Ruling("broken", ruling.result.model_copy(update={"reason": reason}))


def required(metric: str, bound: Bound, value: MetricValue | None, missing: str) -> Ruling:
    """Return whether the whole interval of a value is within a bound. ``missing``: why there is no value."""
    limits = [f"at least {bound.min:g}"] if bound.min is not None else []
    limits += [f"at most {bound.max:g}"] if bound.max is not None else []
    met = value is not None and (bound.min is None or value.low >= bound.min) and (bound.max is None or value.high <= bound.max)
    if value is None:
        seen = missing
    else:
        seen = f"{value.text()} {'is' if met else 'is not'} {' and '.join(limits)} with its whole interval"
    reason = f"requirement {metric} {'met' if met else 'not met'}: {seen}"
    result = RuleResult(rule="require", passed=met, reason=reason, metric=metric, challenger=value)
    return Ruling("holds" if met else "broken", result)


def leakage(case: Case, leakage: Leakage | None) -> Ruling:
    if leakage is None:
        again = f"run `remint run {case.model}` to evaluate again"
        return evidence("broken", f"overlap of training and held-out data was not checked: {again}")
    limit = case.rules.leakage
    passed = leakage.share <= limit
    result = RuleResult(rule="leakage", passed=passed, reason=leakage_reason(leakage, limit))
    return Ruling("holds" if passed else "broken", result)


def improve(case: Case, rule: Improve) -> list[Ruling]:
    """Return a ruling for each metric. If one metric is shown to be better, the open ones hold too."""
    rulings = [_improve_one(case, rule, metric) for metric in rule.metrics]
    if not any(ruling.state == "holds" for ruling in rulings):
        return rulings
    return [Ruling("holds", ruling.result) if ruling.state == "open" else ruling for ruling in rulings]


def _improve_one(case: Case, rule: Improve, metric: str) -> Ruling:
    trial, auto = case.trial, rule.margin == "auto"
    level = trial.level if trial else case.level / len(rule.metrics)
    margin = 0.0 if rule.margin == "auto" else rule.margin
    nights = (trial.evidence.get(metric, 0.0), trial.needed) if trial and auto else None
    seeds = case.spread.values.get(metric, ()) if case.spread and auto else ()
    luck = seed_margin(seeds, 1.0 - level) if len(seeds) >= MIN_SEEDS else 0.0  # seeds explain as much on the other side

    def judge(gain: Difference) -> tuple[State, str]:
        if gain.high < min(margin, 0.0) - luck:
            return "broken", "shown to be worse" + (f" by more than {luck:.4f}, the seed-to-seed variation" if luck else "")
        if not auto:
            words = f" by more than {margin:g}" if margin else ""
            return ("holds", f"shown to be better{words}") if gain.low > margin else ("open", f"not shown to be better{words}")
        return _beyond_luck(case, metric, gain)

    ruling = _paired(case, "improve", metric, level, margin, judge)
    return Ruling(ruling.state, ruling.result.model_copy(update={"nights": nights if ruling.result.difference else None}))


def _beyond_luck(case: Case, metric: str, gain: Difference) -> tuple[State, str]:
    """Return whether a challenger is better than seeds and examples explain. Its trial has the evidence of all nights."""
    assert case.trial is not None, "with_trial came first"
    if metric not in case.trial.evidence:
        return "open", "not judged, because another rule failed"
    evidence, needed = case.trial.evidence[metric], case.trial.needed
    words = f"better than seed-to-seed variation explains (evidence {evidence:.3g}, {needed:g} is enough)"
    if evidence >= needed and gain.low > 0.0:
        return "holds", f"shown to be {words}"
    if evidence >= needed:
        return "open", f"{words}, but not shown to be better on other held-out examples"
    known = draws(case.past.trials, case.trial, metric).degrees >= MIN_SEEDS - 1
    missing = "" if known else f": the spread of {metric} over seeds was not measured: run remint spread {case.model}"
    return "open", f"not shown to be {words}{missing}"


def with_trial(case: Case) -> Case:
    """Return the case with its trial. It has no gains if nothing was compared, or if the comparison does not count."""
    rule, leaks = case.rules.improve, case.challenger.report.leakage
    sound = leaks is not None and leaks.share <= case.rules.leakage
    sound = sound and not (case.is_champion or case.training_failure or case.incomparable)
    measured = {metric: _gain(case, metric) for metric in (rule.metrics if rule and sound else ())}
    gains = {metric: gain for metric, gain in measured.items() if gain is not None}
    better = {metric: case.compared.report.metrics[metric].better for metric in gains}
    seeds = {metric: case.past.seeds(case.spread, metric, better[metric]) for metric in gains}
    night = Night(
        key=case.challenger.report.model_key,
        recipe=case.recipe,
        champion=case.champion_version,
        champion_recipe=case.past.champion_recipe,
        confidence=1.0 - case.level,
        auto=rule is not None and rule.margin == "auto",
        champion_key=case.past.champion_key,
        ages=case.past.ages,
        metrics=len(rule.metrics) if rule else 1,
        gains=gains,
        seeds={metric: own for metric, (own, _) in seeds.items() if own},
        other_seeds={metric: other for metric, (_, other) in seeds.items() if other},
        sample=sha256(case.past.seen_first),
    )
    return replace(case, trial=following(case.past.trials, night))


def _gain(case: Case, metric: str) -> tuple[float, float] | None:
    """Return by how much the challenger is better, and the standard error; None if the two cannot be compared."""
    sides = (case.compared, case.champion)
    if case.champion is None or any(comparable.measured(side, metric, "")[0] is None for side in sides if side is not None):
        return None
    if comparable.incomparable_reason(case.compared, case.champion, metric):
        return None
    gain_N, gain_J = comparable.gains(case.compared, case.champion, metric)
    found = float(gain_N.mean()), error(gain_N, gain_J)
    return found if all(abs(each) < LARGEST for each in found) else None


def never_worse(case: Case, metric: str) -> Ruling:
    tolerance = case.rules.never_worse[metric]

    def judge(gain: Difference) -> tuple[State, str]:
        if gain.low >= -tolerance:
            return "holds", f"shown to be worse by no more than {tolerance:g}"
        if gain.high < -tolerance:
            return "broken", f"shown to be worse by more than {tolerance:g}"
        return "open", f"not shown to be within {tolerance:g} (use more samples or a wider tolerance)"

    return _paired(case, "never_worse", metric, case.level, -tolerance, judge)


def _paired(
    case: Case,
    rule: Literal["improve", "never_worse"],
    metric: str,
    level: float,  # of the lower limit, which decides whether the challenger is good enough
    margin: float | None,  # bound for that limit
    judge: Callable[[Difference], tuple[State, str]],
) -> Ruling:
    """Return the ruling of one rule that compares the two sides, with the numbers of both."""
    ours, problem = comparable.measured(case.compared, metric, "the challenger")
    if case.champion is None:
        theirs, missing = None, "the champion was not evaluated on this data"
    else:
        theirs, missing = comparable.measured(case.champion, metric, "the champion")
    result = RuleResult(rule=rule, passed=False, reason="", metric=metric, challenger=ours, champion=theirs)
    if ours is None or theirs is None or case.champion is None:
        return Ruling("broken", result.model_copy(update={"reason": f"not comparable: {problem or missing}"}))
    incomparable = comparable.incomparable_reason(case.compared, case.champion, metric)
    if incomparable:
        return Ruling("broken", result.model_copy(update={"reason": f"not comparable: {metric} {incomparable}"}))
    gain_N, gain_J = comparable.gains(case.compared, case.champion, metric)
    gain = difference(gain_N, 1.0 - level, 1.0 - case.level / case.comparisons, gain_J)
    state, words = judge(gain)
    sides = f"{metric} {ours.text()} against the champion's {theirs.text()}"
    tries = f", one of {case.comparisons} comparisons" if case.comparisons > 1 else ""
    reason = f"{sides}: {words}, difference {gain.text()} at {100.0 * (1.0 - level):.4g}%{tries}"
    found = {"reason": reason, "difference": (gain.value, gain.low, gain.high), "margin": margin}
    return Ruling(state, result.model_copy(update={"passed": state == "holds", **found}))
