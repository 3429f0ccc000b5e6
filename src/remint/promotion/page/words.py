"""Text of the page: names of metrics, rules and verdicts in plain words, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping

from remint.evaluation.evidence import ON_CALIBRATION
from remint.promotion.decision import RuleResult
from remint.records import EvaluationReport, MetricValue
from remint.settings.judging import PromotionSettings

# Verdict -> title and meaning; {new} and {old} are versions.
VERDICTS = {
    "promoted": ("Promoted", "{new} goes into production."),
    "kept": ("Kept", "{new} is not shown to be better: {old} stays in production."),
    "refused": ("Refused", "{new} does not go into production."),
    "awaiting_approval": ("Awaiting approval", "{new} breaks no rule; a person must approve it."),
    "awaiting_shadow": ("Awaiting shadow", "{new} would go into production; it first answers copies of requests to {old}."),
}

# In the order of the page: problems of the evidence first, then requirements on the model.
RULES = {
    "evidence": "evidence",
    "clean": "committed code",
    "person": "a person's veto",
    "approval": "approval",
    "shadow": "shadow",
    "schema": "the champion's schema",
    "improve": "must be better",
    "require": "required",
    "never_worse": "must not be worse",
    "leakage": "leakage",
}

# Keys are prefixes of a metric's name; the longest match counts.
METRICS = {
    "nll": "exact negative log-likelihood of held-out examples",
    "elbo": "evidence lower bound on the likelihood of held-out examples, as a loss",
    "iwae": "importance-weighted bound on the likelihood of held-out examples, as a loss",
    "fd_infinity": "Frechet distance, extrapolated to infinitely many samples",
    "fd_domain": "Frechet distance of samples to held-out examples, in features of this dataset",
    "fd_": "Frechet distance of samples to held-out examples",
    "fid": "Frechet Inception distance of samples to held-out examples",
    "kid": "kernel distance (squared MMD) of samples to held-out examples",
    "precision": "share of samples that are close to real examples",
    "recall": "share of real examples that are close to samples",
    "density": "density of real examples around samples; real examples score 1",
    "coverage": "share of real examples with a sample nearby",
    "novelty": "distance of samples to their nearest training example",
    "class_agreement": "share of samples that a classifier assigns to the requested class",
    "shadow_error_rate": "share of copies of requests that it failed to answer",
    "shadow_latency": "its seconds for a copy of a request over the champion's",
    "shadow_score_distance": "Kolmogorov-Smirnov distance between log p under it and under the champion",
    "factorised": "a model with independent dimensions",
}


# Entry of a report's context -> where the linear probe reads from.
PROBES = {"probe_latent": "latents", "probe_pca": "principal components", "probe_raw": "values"}


def about(metric: str) -> str:
    """Return one clause that explains a metric; "" for a metric of a plug-in."""
    return next((METRICS[key] for key in sorted(METRICS, key=len, reverse=True) if metric.startswith(key)), "")


def asked(rule: RuleResult, rules: PromotionSettings) -> str:
    """Return the requirement of a rule, as in params.yaml."""
    if rule.rule == "require" and rule.metric in rules.require:
        bound = rules.require[rule.metric]
        limits = [f"at least {bound.min:g}"] if bound.min is not None else []
        return " and ".join(limits + ([f"at most {bound.max:g}"] if bound.max is not None else []))
    if rule.rule == "improve" and rules.improve is not None:
        known = f" by more than {rule.margin:.4g}" if rule.margin else ""
        return f"shown better{known}" + (" than seed-to-seed variation explains" if rules.improve.margin == "auto" else "")
    if rule.rule == "never_worse" and rule.metric in rules.never_worse:
        return f"shown worse by at most {rules.never_worse[rule.metric]:g}"
    if rule.rule == "leakage":
        return f"at most {rules.leakage:.2%} of the examples"
    return ""


def unchosen(metric: str, reports: Mapping[str, EvaluationReport], places: int) -> str:
    """Return a sentence with a likelihood on the calibration split, which chose no version; "" if it was not measured there.

    ``reports``: of the shown sides, by name.
    """
    said = []
    for who, report in reports.items():
        found = report.context.get(metric + ON_CALIBRATION)
        if found is not None:
            beyond = signed(found.value - report.metrics[metric].value, places)
            said.append(f"{who} {number(found.value, places)} {interval(found, places)}, {beyond} from held-out")
    return f"on calibration examples, which chose no version: {'; '.join(said)}" if said else ""


def decimals(*values: MetricValue | None) -> int:
    """Return the decimal places that show the narrowest interval with two digits, and no value with more than five."""
    known = [value for value in values if value is not None]
    halves = [(value.high - value.low) / 2.0 for value in known if value.high > value.low]
    most = max((abs(value.value) for value in known), default=0.0)
    figures = 4 - math.floor(math.log10(most)) if most > 0.0 else 3
    return min(6, max(0, min(figures, places_of(min(halves)) if halves else 3)))


def places_of(size: float) -> int:
    """Return the decimal places, at most 6, that show ``size`` (above 0) with two digits."""
    return min(6, max(0, 1 - math.floor(math.log10(size))))


def number(value: float, places: int) -> str:
    """Return the number with a true minus sign."""
    return f"{value:.{places}f}".replace("-", "−")


def signed(value: float, places: int) -> str:
    return f"{value:+.{places}f}".replace("-", "−")


def interval(value: MetricValue, places: int) -> str:
    return f"[{number(value.low, places)}, {number(value.high, places)}]"
