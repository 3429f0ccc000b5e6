"""Diversity: distances between samples, relative to distances between held-out examples. Higher is better; equal: 1.

    sum over the features of the variance over samples / the same over held-out examples

This is the ratio of the mean squared distances within each set. A model that always draws the same example has 0.

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
    """Return the mean over repeated draws of n samples, each compared with the same n held-out examples."""
    n = context.size("diversity", 2)
    reference = spread(context.real("domain"))
    ratio_M = np.array([spread(context.drawn("domain", model, draw)) / reference for draw in context.draws])
    return {"diversity": Measurement.over_draws(finite(ratio_M, "diversity"), n, context, **context.measured_in("domain"))}


def spread(f_ND: np.ndarray[Any, Any]) -> float:
    return float(f_ND.var(axis=0, ddof=1).sum())
