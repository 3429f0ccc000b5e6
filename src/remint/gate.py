"""The gate: evidence and rules in, a decision with reasons out. Pure: no file, no clock, no vendor.

The burden of proof is the challenger's. A rule holds, is broken, or cannot be told from chance, and the verdict follows:

    rule          holds                                        cannot be told     broken
    require       the 95% interval lies wholly within bounds   -                  any other outcome
    improve       shown better by more than the margin         anything between   shown worse than the champion
    never_worse   shown worse by no more than the tolerance    anything between   shown worse by more than it
    verdict       promoted (or awaiting_approval)              kept               refused

``require`` asks the interval's far limit and not the value: a value at the bound is beyond it in half of all
repetitions, and an interval that is wide for want of examples must not open the gate. A challenger that is shown to be
worse on the metric that it should improve is refused and not kept: something broke, and a person should look. Missing,
broken or incomparable evidence refuses, whatever the numbers.

"Shown" is one-sided at ``improve.confidence`` (0.95 for guards where there is no ``improve``), by the studentised
bootstrap over pairs (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5): over examples for
likelihoods, over repeated draws for Frechet distances. The plain percentile bootstrap is too narrow for 20 draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from remint.config import Improve, PromotionSettings
from remint.records import Decision, Evidence, MetricValue, RuleResult, Verdict, digest, values_digest

RESAMPLES = 9_999
FEWEST = 8  # values behind a comparison; with fewer, a resample of one value repeated is too likely
GUARD_CONFIDENCE = 0.95

State = Literal["holds", "open", "broken"]
_VERDICTS: dict[State, Verdict] = {"holds": "promoted", "open": "kept", "broken": "refused"}


@dataclass(frozen=True)
class _Ruling:
    state: State
    result: RuleResult


@dataclass(frozen=True)
class _Difference:
    """How much better the challenger is. Above 0 is better, whichever direction the metric has."""

    value: float
    low: float  # one-sided limits, each at the confidence asked for
    high: float

    def text(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class _Case:
    """What the rules are held against."""

    model: str
    challenger: Evidence
    challenger_version: int
    champion: Evidence | None
    champion_version: int | None
    rules: PromotionSettings

    @property
    def first(self) -> bool:
        return self.champion_version is None

    @property
    def same(self) -> bool:
        """Whether the challenger is the champion: same weights, data and settings."""
        keys = self.champion is not None and self.challenger.report.model_key == self.champion.report.model_key
        return not self.first and (keys or self.challenger_version == self.champion_version)


def decide(
    model: str,
    challenger: Evidence,
    challenger_version: int,
    champion: Evidence | None,
    champion_version: int | None,
    rules: PromotionSettings,
    *,
    dirty: str | None = None,  # what was not committed; None: the challenger was built from a clean commit
    comparable: str | None = None,  # why the champion could not be evaluated; None: it could
    cut_short: str | None = None,  # how the training went wrong; None: it came to its end
) -> Decision:
    """The verdict on one challenger, with every rule and every number that it used.

    ``champion`` is the champion's evidence on the challenger's data, measured with today's settings. Bad evidence is a
    refusal with its reason, never an exception, and never a promotion.
    """
    case = _Case(model, challenger, challenger_version, champion, champion_version, rules)
    rulings = _rulings(case, dirty, comparable, cut_short)
    states = {ruling.state for ruling in rulings}
    worst: State = "broken" if "broken" in states else "open" if "open" in states else "holds"
    verdict = _VERDICTS[worst]
    reasons = [ruling.result.reason for ruling in rulings if ruling.state == worst]
    if verdict == "promoted" and rules.approval == "manual":
        verdict = "awaiting_approval"
        wait = f"promotion.approval is manual: remint promote {model}/{challenger_version} --reason '..', or remint reject"
        rulings.append(_Ruling("open", RuleResult(rule="approval", passed=False, reason=wait)))
        reasons.append(wait)
    sources = {"challenger": _digest(challenger), **({"champion": _digest(champion)} if champion else {})}
    return Decision(
        model=model,
        verdict=verdict,
        challenger=challenger_version,
        champion=champion_version,
        rules=tuple(ruling.result for ruling in rulings),
        reasons=tuple(reasons),
        evidence={**sources, "rules": digest(rules.model_dump(mode="json"))},
    )


def _rulings(case: _Case, dirty: str | None, comparable: str | None, cut_short: str | None) -> list[_Ruling]:
    rules = case.rules
    if not rules.metrics():
        return [
            _evidence(
                "broken", f"no gate: {case.model} has no rules; write promotion.require or promotion.improve in params.yaml"
            )
        ]
    if case.same:
        return [
            _evidence("open", f"it is the champion {case.model}/{case.champion_version} itself: same weights, data and settings")
        ]
    rulings = []
    if dirty is not None:
        uncommitted = f"uncommitted changes: {dirty}; commit and run again, or promote it yourself with a reason"
        rulings.append(_Ruling("broken", RuleResult(rule="clean", passed=False, reason=uncommitted)))
    if cut_short is not None:
        rulings.append(_evidence("broken", f"{cut_short}; a training that went wrong is not promoted by the gate"))
    rulings += [_require(case, metric) for metric in sorted(rules.require)]
    if case.first:
        if not rules.require:
            rulings.append(
                _evidence("broken", "no champion, and no requirement to hold a first version against: write promotion.require")
            )
        return rulings
    if comparable is not None:
        return [*rulings, _evidence("broken", f"not comparable: {comparable}")]
    if rules.improve is not None:
        rulings.append(_improve(case, rules.improve))
    return rulings + [_never_worse(case, metric) for metric in sorted(rules.never_worse)]


def _evidence(state: State, reason: str) -> _Ruling:
    return _Ruling(state, RuleResult(rule="evidence", passed=False, reason=reason))


def _require(case: _Case, metric: str) -> _Ruling:
    bound = case.rules.require[metric]
    limits = [f"at least {bound.min:g}"] if bound.min is not None else []
    limits += [f"at most {bound.max:g}"] if bound.max is not None else []
    words = " and ".join(limits)
    value, problem = _measured(case.challenger, metric, "the challenger")
    met = value is not None and (bound.min is None or value.low >= bound.min) and (bound.max is None or value.high <= bound.max)
    if value is None:
        seen = problem
    else:
        seen = f"{value.text()} {'is' if met else 'is not'} {words} with its whole interval"
    reason = f"{'no champion, and ' if case.first and not met else ''}requirement {metric} {'met' if met else 'not met'}: {seen}"
    result = RuleResult(rule="require", passed=met, reason=reason, metric=metric, challenger=value)
    return _Ruling("holds" if met else "broken", result)


def _improve(case: _Case, rule: Improve) -> _Ruling:
    def judge(difference: _Difference) -> tuple[State, str]:
        more = f" by more than {rule.margin:g}" if rule.margin else ""
        if difference.low > rule.margin:
            return "holds", f"shown to be better{more}"
        if difference.high < min(rule.margin, 0.0):
            return "broken", "shown to be worse"
        return "open", f"not shown to be better{more}"

    return _paired(case, "improve", rule.metric, rule.confidence, judge)


def _never_worse(case: _Case, metric: str) -> _Ruling:
    tolerance = case.rules.never_worse[metric]

    def judge(difference: _Difference) -> tuple[State, str]:
        if difference.low >= -tolerance:
            return "holds", f"shown to be worse by no more than {tolerance:g}"
        if difference.high < -tolerance:
            return "broken", f"shown to be worse by more than {tolerance:g}"
        return "open", f"not shown to be within {tolerance:g} (more samples or a wider tolerance would tell)"

    confidence = case.rules.improve.confidence if case.rules.improve else GUARD_CONFIDENCE
    return _paired(case, "never_worse", metric, confidence, judge)


def _paired(
    case: _Case,
    rule: Literal["improve", "never_worse"],
    metric: str,
    confidence: float,
    judge: Callable[[_Difference], tuple[State, str]],
) -> _Ruling:
    """One rule that holds the two sides against each other, with the numbers of both."""
    ours, problem = _measured(case.challenger, metric, "the challenger")
    if case.champion is None:
        theirs, missing = None, "the champion was not evaluated on this data"
    else:
        theirs, missing = _measured(case.champion, metric, "the champion")
    result = RuleResult(rule=rule, passed=False, reason="", metric=metric, challenger=ours, champion=theirs)
    if ours is None or theirs is None or case.champion is None:
        return _Ruling("broken", result.model_copy(update={"reason": f"not comparable: {problem or missing}"}))
    unlike = _unlike(case.challenger, case.champion, metric)
    if unlike:
        return _Ruling("broken", result.model_copy(update={"reason": f"not comparable: {metric} {unlike}"}))
    gain_N = np.subtract(case.champion.values[metric], case.challenger.values[metric], dtype=np.float64)
    difference = _bootstrap(-gain_N if ours.better == "higher" else gain_N, confidence)
    state, words = judge(difference)
    sides = f"{metric} {ours.text()} against the champion's {theirs.text()}"
    reason = f"{sides}: {words}, difference {difference.text()} at {confidence:.0%}"
    numbers = (difference.value, difference.low, difference.high)
    return _Ruling(state, result.model_copy(update={"passed": state == "holds", "reason": reason, "difference": numbers}))


def _unlike(challenger: Evidence, champion: Evidence, metric: str) -> str:
    """Why one metric of two reports may not be compared; "" where it may."""
    if challenger.report.dataset != champion.report.dataset:
        return "was measured on different dataset versions"
    ours, theirs = challenger.report.metrics[metric], champion.report.metrics[metric]
    for what, a, b in (("n", ours.n, theirs.n), ("unit", ours.unit, theirs.unit), ("direction", ours.better, theirs.better)):
        if a != b:
            return f"has {what} {a} for the challenger and {b} for the champion"
    if ours.fingerprint != theirs.fingerprint:
        keys = {k for k in {*ours.fingerprint, *theirs.fingerprint} if ours.fingerprint.get(k) != theirs.fingerprint.get(k)}
        return f"was measured differently: {', '.join(sorted(keys))}"
    a_count, b_count = np.size(challenger.values[metric]), np.size(champion.values[metric])
    if a_count != b_count:
        return f"has {a_count} values for the challenger and {b_count} for the champion"
    return f"has {a_count} values and needs {FEWEST}: raise evaluation.draws or the data" if a_count < FEWEST else ""


def _measured(evidence: Evidence, metric: str, side: str) -> tuple[MetricValue | None, str]:
    """A metric that can be believed; or None and what is wrong with it."""
    value = evidence.report.metrics.get(metric)
    if value is None or metric not in evidence.values:
        return None, f"{metric} is missing for {side}: evaluate again"
    numbers = np.array([value.value, value.low, value.high])
    values_N = np.asarray(evidence.values[metric])
    if values_N.ndim != 1 or values_N.size == 0 or values_N.dtype.kind not in "fiu":
        return None, f"{metric} of {side} has no list of numbers behind it"
    bad = int((~np.isfinite(values_N)).sum())
    if bad or not np.isfinite(numbers).all():
        return None, f"{metric} of {side} is not finite ({bad} of {values_N.size} values)"
    if value.low > value.high:
        return None, f"{metric} of {side} has an interval from {value.low:g} down to {value.high:g}"
    if evidence.report.values_sha256 not in ("", values_digest(evidence.values)):
        return None, f"the values of {side} are not those that its report was written with"
    return value, ""


def _bootstrap(better_N: np.ndarray, confidence: float) -> _Difference:
    """Mean of paired differences with one-sided studentised bootstrap limits. The same input gives the same limits."""
    n = better_N.size
    mean, error = float(better_N.mean()), float(better_N.std(ddof=1)) / np.sqrt(n)
    # Differences that are all alike, but for rounding, have no spread to resample.
    if error <= 1e-12 * float(np.abs(better_N).max()):
        return _Difference(mean, mean, mean)
    centred_N = (better_N - mean) / error  # so that t below is free of units, and of under- and overflow
    generator = np.random.default_rng(0)
    t = np.empty(RESAMPLES)
    rows = max(1, 2_000_000 // n)  # resamples at a time: bounds the memory
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        drawn_BN = centred_N[generator.integers(0, n, (count, n))]
        spread_B = np.maximum(drawn_BN.std(axis=1, ddof=1) / np.sqrt(n), 1e-9)
        t[start : start + count] = drawn_BN.mean(axis=1) / spread_B
    below, above = np.quantile(t, [1.0 - confidence, confidence])
    return _Difference(mean, mean - float(above) * error, mean - float(below) * error)


def _digest(evidence: Evidence) -> str:
    """Of the report with the values that were really used. "" where it holds a number that JSON has not (NaN)."""
    try:
        return evidence.report.model_copy(update={"values_sha256": values_digest(evidence.values)}).digest
    except ValueError:
        return ""
