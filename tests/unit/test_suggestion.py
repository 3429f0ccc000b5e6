"""Bounds that are suggested while a pipeline has no champion."""

from __future__ import annotations

from typing import Any

import pytest

from remint.promotion import gate
from remint.promotion.suggestion import suggest
from remint.records import EvaluationReport, MetricValue
from remint.settings.judging import PromotionSettings
from tests.unit.test_gate import evidence


def value(name: str, low: float, high: float, **more: Any) -> MetricValue:
    return MetricValue(name=name, value=(low + high) / 2, low=low, high=high, n=100, seed=0, **more)


def report(*metrics: MetricValue, **context: MetricValue) -> EvaluationReport:
    return EvaluationReport(
        pipeline="m",
        model_key="k",
        weights_sha256="w",
        dataset="d",
        metrics={each.name: each for each in metrics},
        context=context,
    )


FACTORISED = value("factorised", 2.42, 2.46, unit="bits/dim")
FLOOR = value("fd_domain_floor", 0.7, 2.1)


@pytest.mark.parametrize(
    ("reached", "bound"),
    [
        (value("nll", 1.86, 1.92, unit="bits/dim"), "nll: {max: 2.18}"),  # halfway between 1.92 and 2.44
        (value("fd_domain", 1.7, 2.9), "fd_domain: {max: 4.4}"),  # 2.9 + (2.9 - 1.4)
        (value("fd_domain", 0.2, 0.9), "fd_domain: {max: 0.9}"),  # below the floor
        (value("coverage_domain", 0.94, 0.96, better="higher"), "coverage_domain: {min: 0.88}"),
        (value("nll", 2.40, 2.44, unit="bits/dim"), ""),  # no better than independent dimensions
        (value("coverage_domain", 0.4, 0.5, better="higher"), ""),
        (value("coverage_domain", 0.50001, 0.6, better="higher"), "coverage_domain: {min: 2.0e-05}"),  # 2e-05 is text in YAML
        (value("of_a_plug_in", 0.4, 0.5), ""),
    ],
)
def test_a_bound_follows_from_the_value_and_its_reference(reached: MetricValue, bound: str) -> None:
    sentence = suggest(report(reached, factorised=FACTORISED, fd_domain_floor=FLOOR), [reached.name, "missing"])
    if not bound:
        assert sentence == ""
        return
    assert sentence.startswith(f"{reached.name} reached {reached.text()}")
    assert sentence.endswith(f"A bound that follows from them: promotion.require: {{{bound}}}")
    if reached.name == "nll":
        assert ", factorised 2.440. " in sentence


@pytest.mark.parametrize(
    ("high", "reference", "bound"),
    [(25.31, 25.38, "25.34"), (-30.04, -29.99, "-30.02"), (12345.0, 12345.5, "12345.2"), (9.0, 9.5, "9.25")],
)
def test_a_bound_lies_between_two_numbers_that_are_close(high: float, reference: float, bound: str) -> None:
    reached, factorised = value("nll", high - 1, high), value("factorised", reference, reference)
    assert suggest(report(reached, factorised=factorised), ["nll"]).endswith(f"{{nll: {{max: {bound}}}}}")


def test_a_first_refusal_suggests_a_bound_that_the_same_version_then_meets() -> None:
    reached = evidence(1.9)
    reached = type(reached)(reached.report.model_copy(update={"context": {"factorised": FACTORISED}}), reached.values)
    refusals = [
        gate.decide("m", reached, 1, None, None, PromotionSettings.model_validate(rules))
        for rules in ({}, {"improve": {"metric": "nll"}}, {"require": {"nll": {"max": 1.0}}})
    ]
    for refused in refusals:
        assert refused.verdict == "refused"
        (reason,) = refused.reasons
        assert "promotion.require: {nll: {max: 2.18}}" in reason
    rules = PromotionSettings.model_validate({"require": {"nll": {"max": 2.18}}})
    assert gate.decide("m", reached, 1, None, None, rules).verdict == "promoted"
