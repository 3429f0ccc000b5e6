"""What the page calls things: metrics, rules and verdicts, each in words that need no glossary; and numbers as text."""

from __future__ import annotations

import math

from remint.promotion.decision import RuleResult
from remint.records import MetricValue
from remint.settings.judging import PromotionSettings

# Verdict -> what it means; {new} and {old} are versions.
VERDICTS = {
    "promoted": ("Promoted", "{new} goes into production."),
    "kept": ("Kept", "{new} is not shown to be better: {old} stays in production."),
    "refused": ("Refused", "{new} does not go into production."),
    "awaiting_approval": ("Awaiting approval", "{new} holds every rule, and a person has the last word."),
}

# In the order in which the page tells of them: what is wrong with the evidence, then what was asked of the model.
RULES = {
    "evidence": "evidence",
    "clean": "committed code",
    "person": "a person's word",
    "approval": "approval",
    "improve": "must be better",
    "require": "required",
    "never_worse": "must not be worse",
    "leakage": "leakage",
}

# By the beginning of a metric's name, the longest first.
METRICS = {
    "nll": "exact negative log-likelihood of held-out examples",
    "elbo": "evidence lower bound on the likelihood of held-out examples, as a loss",
    "iwae": "importance-weighted bound on the likelihood of held-out examples, as a loss",
    "fd_infinity": "Frechet distance, extrapolated to infinitely many samples",
    "fd_domain": "Frechet distance of samples to held-out examples, in features of this dataset",
    "fd_": "Frechet distance of samples to held-out examples",
    "fid": "Frechet Inception distance of samples to held-out examples",
    "kid": "kernel distance (squared MMD) of samples to held-out examples",
    "precision": "share of samples that lie among real examples",
    "recall": "share of real examples that lie among samples",
    "density": "how densely real examples lie around samples; real ones score 1",
    "coverage": "share of real examples with a sample near by",
    "novelty": "distance of samples to their nearest training example",
    "class_agreement": "share of samples that a classifier takes for the class asked for",
    "factorised": "a model without any dependence between dimensions",
}


def about(metric: str) -> str:
    """One clause that says what a metric is; "" of one that a plug-in brings."""
    return next((METRICS[key] for key in sorted(METRICS, key=len, reverse=True) if metric.startswith(key)), "")


def asked(rule: RuleResult, rules: PromotionSettings) -> str:
    """What a rule asks for, as params.yaml says it."""
    if rule.rule == "require" and rule.metric in rules.require:
        bound = rules.require[rule.metric]
        limits = [f"at least {bound.min:g}"] if bound.min is not None else []
        return " and ".join(limits + ([f"at most {bound.max:g}"] if bound.max is not None else []))
    if rule.rule == "improve" and rules.improve is not None:
        known = f" by more than {rule.margin:.4g}" if rule.margin else ""
        return f"shown better{known}" + (", which seeds differ by" if rules.improve.margin == "auto" else "")
    if rule.rule == "never_worse" and rule.metric in rules.never_worse:
        return f"shown worse by at most {rules.never_worse[rule.metric]:g}"
    if rule.rule == "leakage":
        return f"at most {rules.leakage:.2%} of the examples"
    return ""


def decimals(*values: MetricValue | None) -> int:
    """Places after the point that show the narrowest interval with two figures, and no value with more than five."""
    known = [value for value in values if value is not None]
    halves = [(value.high - value.low) / 2.0 for value in known if value.high > value.low]
    most = max((abs(value.value) for value in known), default=0.0)
    figures = 4 - math.floor(math.log10(most)) if most > 0.0 else 3
    return min(6, max(0, min(figures, places_of(min(halves)) if halves else 3)))


def places_of(size: float) -> int:
    """Places after the point that show ``size``, above 0, with two figures; at most 6."""
    return min(6, max(0, 1 - math.floor(math.log10(size))))


def number(value: float, places: int) -> str:
    """With a true minus sign."""
    return f"{value:.{places}f}".replace("-", "−")


def signed(value: float, places: int) -> str:
    return f"{value:+.{places}f}".replace("-", "−")


def interval(value: MetricValue, places: int) -> str:
    return f"[{number(value.low, places)}, {number(value.high, places)}]"
