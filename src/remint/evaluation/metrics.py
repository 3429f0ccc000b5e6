"""The metrics, by name: what each asks of a model, and what measures it. A new one is a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from remint.evaluation import distance, likelihood
from remint.evaluation.bench import Bench, Measurement
from remint.models.contract import CanSample, HasElbo, HasLogProb


@dataclass(frozen=True)
class Metric:
    """One metric. Metrics that come of one pass over the model share its ``measure``, which runs once."""

    requires: type[Any]  # the protocol of models/contract.py that a model must have
    measure: Callable[[Any, Bench], Mapping[str, Measurement]]  # measurements by metric name
    in_unit: bool = False  # whether it is in the data's unit (records.DataSpec.unit)
    better: Literal["lower", "higher"] = "lower"
    context: Mapping[str, Callable[[Bench], Measurement]] = field(default_factory=dict)  # not of the model


METRICS: dict[str, Metric] = {
    "nll": Metric(HasLogProb, likelihood.exact, in_unit=True, context={"factorised": likelihood.factorised}),
    "elbo": Metric(HasElbo, likelihood.bounds, in_unit=True, context={"factorised": likelihood.factorised}),
    "iwae": Metric(HasElbo, likelihood.bounds, in_unit=True, context={"factorised": likelihood.factorised}),
    "fd_domain": Metric(CanSample, distance.domain, context={"fd_domain_floor": distance.floor}),
    "class_agreement": Metric(CanSample, distance.agreement, better="higher"),
}
