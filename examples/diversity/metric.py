"""Diversity: how far samples lie from each other, over how far held-out examples do. Higher is better, 1 as they do.

    sum over the features of the variance over samples / the same over held-out examples

That is the ratio of the mean squared distances between two of them. A model that draws one example over and over has 0.

Shapes: N examples, D features, M draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from remint.evaluation.context import EvaluationContext, Measurement, finite
from remint.models.contract import CanSample
from remint.settings.catalogue import Facts

FACTS = Facts(needs="sample", features="domain", better="higher")


def measure(model: CanSample, context: EvaluationContext) -> Mapping[str, Measurement]:
    """The mean over repeated draws of n samples, each against the same n held-out examples."""
    n = context.size("diversity", 2)
    usual = spread(context.real("domain"))
    ratio_M = np.array([spread(context.drawn("domain", model, draw)) / usual for draw in context.draws])
    return {"diversity": Measurement.over_draws(finite(ratio_M, "diversity"), n, context, **context.measured_in("domain"))}


def spread(f_ND: np.ndarray[Any, Any]) -> float:
    return float(f_ND.var(axis=0, ddof=1).sum())
