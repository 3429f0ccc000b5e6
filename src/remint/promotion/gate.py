"""The gate: evidence and rules in, a decision with reasons out. Pure: no file, no clock, no vendor.

The challenger has the burden of proof. A rule holds, is open (chance can explain the numbers) or is broken. The worst of
them gives the verdict:

    rule          holds                                        open               broken
    require       the whole 95% interval is within bounds      -                  any other outcome
    improve       shown better by more than the margin         anything between   shown worse than the champion
    never_worse   shown worse by no more than the tolerance    anything between   shown worse by more than it
    verdict       promoted (or awaiting_approval)              kept               refused

``require`` checks the interval's far limit, not the value: a value at the bound is beyond it in half of all repetitions,
and an interval that is wide because of few examples must not open the gate. A challenger that is shown to be worse on the
metric that it should improve is refused, not kept: something broke, and a person should look. Missing, broken or
incomparable evidence refuses at any numbers.

"Shown" is one-sided at ``improve.confidence`` (0.95 for guards without ``improve``), by a bootstrap over pairs
(remint.promotion.paired): over examples for likelihoods, over repeated draws for metrics of samples. More comparisons give
chance more tries, so they share the error level (Bonferroni). One better ``improve.metric`` is enough to promote: these
metrics share that level. One comparison that shows the challenger worse is enough to refuse: all comparisons share that
level. The guards need no correction to hold: chance would have to pass all of them.

An interval over examples leaves out the randomness of training. Two trainings that differ in the seed alone do differ, and
with ``margin: 0`` the luckier one is promoted each time. ``margin: auto`` asks for more than the seed-to-seed variation that
``remint spread`` recorded (paired.seed_margin); without a record nothing is shown to be better. A challenger that is worse by
less than that variation is kept, not refused.

A version that a person rejected or rolled back is refused at any numbers, until a person promotes it.

``leakage``: held-out examples that are also in the training split do not measure generalisation. Above a share of them the
challenger is refused; if the champion was trained on them, the two are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from remint.evaluation.evidence import Evidence
from remint.promotion import comparable
from remint.promotion.decision import Decision, RuleResult, Verdict
from remint.promotion.leaked import leakage_reason
from remint.promotion.paired import Difference, difference, seed_margin
from remint.records import Leakage, digest
from remint.settings.judging import Improve, PromotionSettings
from remint.stores.ledger.spreads import SeedSpread

MIN_SEEDS = 3  # that an automatic margin needs
GUARD_CONFIDENCE = 0.95

State = Literal["holds", "open", "broken"]
_VERDICTS: dict[State, Verdict] = {"holds": "promoted", "open": "kept", "broken": "refused"}


@dataclass(frozen=True)
class _Ruling:
    state: State
    result: RuleResult


@dataclass(frozen=True)
class _Case:
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


def decide(
    model: str,
    challenger: Evidence,
    challenger_version: int,
    champion: Evidence | None,
    champion_version: int | None,
    rules: PromotionSettings,
    *,
    dirty: str | None = None,  # the uncommitted changes; None: built from a clean commit
    person: str | None = None,  # a person's veto, in words; None: there is none
    incomparable: str | None = None,  # why the champion could not be evaluated; None: it was
    training_failure: str | None = None,  # how the training went wrong; None: it did not
    spread: SeedSpread | None = None,  # seed-to-seed variation of this pipeline; None: not measured
    recipe: str = "",  # digest of the challenger's recipe, as in SeedSpread
    champion_leakage: Leakage | None = None,  # into the champion's training split, if that is another one
) -> Decision:
    """Return the decision on one challenger, with every rule and every number.

    ``champion`` is the champion's evidence on the challenger's data, measured with today's settings. Bad evidence gives a
    refusal with its reason, never an exception and never a promotion.
    """
    sides = (model, challenger, challenger_version, champion, champion_version)
    case = _Case(*sides, rules, spread, recipe, dirty, person, incomparable, training_failure, champion_leakage)
    rulings = _rulings(case)
    states = {ruling.state for ruling in rulings}
    worst: State = "broken" if "broken" in states else "open" if "open" in states else "holds"
    verdict = _VERDICTS[worst]
    reasons = [ruling.result.reason for ruling in rulings if ruling.state == worst]
    if verdict == "promoted" and rules.approval == "manual":
        verdict = "awaiting_approval"
        wait = f"promotion.approval is manual: remint promote {model}/{challenger_version} --reason '..', or remint reject"
        rulings.append(_Ruling("open", RuleResult(rule="approval", passed=False, reason=wait)))
        reasons.append(wait)
    sources = {
        "challenger": comparable.digest_of(challenger),
        **({"champion": comparable.digest_of(champion)} if champion else {}),
    }
    sources |= {"spread": spread.digest} if spread else {}
    return Decision(
        model=model,
        verdict=verdict,
        challenger=challenger_version,
        champion=champion_version,
        rules=tuple(ruling.result for ruling in rulings),
        reasons=tuple(reasons),
        evidence={**sources, "rules": digest(rules.model_dump(mode="json"))},
    )


def _rulings(case: _Case) -> list[_Ruling]:
    rules = case.rules
    if not rules.metrics():
        return [
            _evidence(
                "broken", f"{case.model} has no promotion rules: write promotion.require or promotion.improve in params.yaml"
            )
        ]
    if case.is_champion:
        return [
            _evidence("open", f"it is the champion {case.model}/{case.champion_version} itself: same weights, data and settings")
        ]
    rulings = []
    if case.dirty is not None:
        uncommitted = f"{case.dirty}; commit and run again, or promote it yourself with a reason"
        rulings.append(_Ruling("broken", RuleResult(rule="clean", passed=False, reason=uncommitted)))
    if case.person is not None:
        by_hand = f"{case.person}; only a person can promote it now"
        rulings.append(_Ruling("broken", RuleResult(rule="person", passed=False, reason=by_hand)))
    if case.training_failure is not None:
        rulings.append(_evidence("broken", f"{case.training_failure}; the gate does not promote a training that went wrong"))
    rulings.append(_leakage(case, case.challenger.report.leakage))
    rulings += [_require(case, metric) for metric in sorted(rules.require)]
    if case.is_first_version:
        if not rules.require:
            missing = "no champion, and no requirements for a first version: write promotion.require in params.yaml"
            rulings.append(_evidence("broken", missing))
        return rulings
    if case.incomparable is not None:
        return [*rulings, _evidence("broken", f"not comparable: {case.incomparable}")]
    if case.champion_leakage is not None and case.champion_leakage.share > rules.leakage:
        leaked = leakage_reason(case.champion_leakage, rules.leakage)
        seen = f"not comparable: the champion was trained on examples that are held out now: {leaked}"
        return [*rulings, _evidence("broken", seen)]
    if rules.improve is not None:
        rulings += _improve(case, rules.improve)
    return rulings + [_never_worse(case, metric) for metric in sorted(rules.never_worse)]


def _evidence(state: State, reason: str) -> _Ruling:
    return _Ruling(state, RuleResult(rule="evidence", passed=False, reason=reason))


def _require(case: _Case, metric: str) -> _Ruling:
    bound = case.rules.require[metric]
    limits = [f"at least {bound.min:g}"] if bound.min is not None else []
    limits += [f"at most {bound.max:g}"] if bound.max is not None else []
    words = " and ".join(limits)
    value, problem = comparable.measured(case.challenger, metric, "the challenger")
    met = value is not None and (bound.min is None or value.low >= bound.min) and (bound.max is None or value.high <= bound.max)
    if value is None:
        seen = problem
    else:
        seen = f"{value.text()} {'is' if met else 'is not'} {words} with its whole interval"
    no_champion = "no champion, and " if case.is_first_version and not met else ""
    reason = f"{no_champion}requirement {metric} {'met' if met else 'not met'}: {seen}"
    result = RuleResult(rule="require", passed=met, reason=reason, metric=metric, challenger=value)
    return _Ruling("holds" if met else "broken", result)


def _leakage(case: _Case, leakage: Leakage | None) -> _Ruling:
    if leakage is None:
        again = f"run `remint run {case.model}` to evaluate again"
        return _evidence("broken", f"overlap of training and held-out data was not checked: {again}")
    limit = case.rules.leakage
    passed = leakage.share <= limit
    result = RuleResult(rule="leakage", passed=passed, reason=leakage_reason(leakage, limit))
    return _Ruling("holds" if passed else "broken", result)


def _improve(case: _Case, rule: Improve) -> list[_Ruling]:
    """Return a ruling for each metric. If one metric is shown to be better, the open ones hold too."""
    rulings = [_improve_one(case, rule, metric) for metric in rule.metrics]
    if not any(ruling.state == "holds" for ruling in rulings):
        return rulings
    return [_Ruling("holds", ruling.result) if ruling.state == "open" else ruling for ruling in rulings]


def _improve_one(case: _Case, rule: Improve, metric: str) -> _Ruling:
    level = case.level / len(rule.metrics)
    margin, words = _margin(case, rule, metric, 1.0 - level)
    luck = margin if rule.margin == "auto" and margin is not None else 0.0  # what seeds explain, they explain on both sides

    def judge(gain: Difference) -> tuple[State, str]:
        if margin is not None and gain.low > margin:
            return "holds", f"shown to be better{words}"
        if gain.high < min(margin or 0.0, 0.0) - luck:
            return "broken", f"shown to be worse{words if luck else ''}"
        return "open", f"not shown to be better{words}"

    return _paired(case, "improve", metric, level, margin, judge)


def _margin(case: _Case, rule: Improve, metric: str, confidence: float) -> tuple[float | None, str]:
    """Return by how much the challenger must be better (None: not known), and the same in words."""
    if rule.margin != "auto":
        return rule.margin, f" by more than {rule.margin:g}" if rule.margin else ""
    seeds = case.spread.values.get(metric, ()) if case.spread else ()
    if len(seeds) < MIN_SEEDS:
        missing = f"the spread of {metric} over seeds was not measured: run remint spread {case.model}"
        return None, f" than seed-to-seed variation explains: {missing}"
    margin = seed_margin(seeds, confidence)
    measured = "" if case.spread and case.spread.recipe == case.recipe else ", measured with other settings than today's"
    return margin, f" by more than {margin:.4f}, the seed-to-seed variation ({len(seeds)} seeds){measured}"


def _never_worse(case: _Case, metric: str) -> _Ruling:
    tolerance = case.rules.never_worse[metric]

    def judge(gain: Difference) -> tuple[State, str]:
        if gain.low >= -tolerance:
            return "holds", f"shown to be worse by no more than {tolerance:g}"
        if gain.high < -tolerance:
            return "broken", f"shown to be worse by more than {tolerance:g}"
        return "open", f"not shown to be within {tolerance:g} (use more samples or a wider tolerance)"

    return _paired(case, "never_worse", metric, case.level, -tolerance, judge)


def _paired(
    case: _Case,
    rule: Literal["improve", "never_worse"],
    metric: str,
    level: float,  # of the lower limit, which decides whether the challenger is good enough
    margin: float | None,  # bound for that limit
    judge: Callable[[Difference], tuple[State, str]],
) -> _Ruling:
    """Return the ruling of one rule that compares the two sides, with the numbers of both."""
    ours, problem = comparable.measured(case.challenger, metric, "the challenger")
    if case.champion is None:
        theirs, missing = None, "the champion was not evaluated on this data"
    else:
        theirs, missing = comparable.measured(case.champion, metric, "the champion")
    result = RuleResult(rule=rule, passed=False, reason="", metric=metric, challenger=ours, champion=theirs)
    if ours is None or theirs is None or case.champion is None:
        return _Ruling("broken", result.model_copy(update={"reason": f"not comparable: {problem or missing}"}))
    incomparable = comparable.incomparable_reason(case.challenger, case.champion, metric)
    if incomparable:
        return _Ruling("broken", result.model_copy(update={"reason": f"not comparable: {metric} {incomparable}"}))
    keys = (metric, comparable.reference_of(metric))
    gain_N, gain_J = (comparable.gain(case.challenger, case.champion, key, ours.better) for key in keys)
    assert gain_N is not None, "both sides were measured"
    gain = difference(gain_N, 1.0 - level, 1.0 - case.level / case.comparisons, gain_J)
    state, words = judge(gain)
    sides = f"{metric} {ours.text()} against the champion's {theirs.text()}"
    tries = f", one of {case.comparisons} comparisons" if case.comparisons > 1 else ""
    reason = f"{sides}: {words}, difference {gain.text()} at {1.0 - case.level:.0%}{tries}"
    found = {"reason": reason, "difference": (gain.value, gain.low, gain.high), "margin": margin}
    return _Ruling(state, result.model_copy(update={"passed": state == "holds", **found}))
