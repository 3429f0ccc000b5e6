"""Frechet distances of samples to held-out examples, in any features. Lower is better.

``fd``            between n samples and n held-out examples: the mean over repeated draws
``fd_infinity``   its extrapolation to infinitely many examples on both sides

The distance of finite sets is biased upwards. The bias is about linear in 1/n (Chong & Forsyth, Effectively unbiased FID
and Inception Score and where to find them, 2020). So every ``fd`` here has the same number of examples on both sides, and
its floor is the distance that real examples reach. ``fd_infinity`` is the intercept of a straight line through the
distances of nested subsets.

All draws are compared with the same held-out examples. The effect of their choice is estimated by a jackknife: leave out
one group of them at a time and measure against all draws together (evaluation/intervals.py).

Shapes: N examples, D features, J groups, S sizes, of nested subsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from remint.evaluation import intervals
from remint.evaluation.context import DISTANCE, EvaluationContext, Measurement, Metric, finite
from remint.evaluation.frechet import Moments, frechet_distance
from remint.models.contract import CanSample
from remint.settings.catalogue import FEATURES, Features, in_features

GROUPS = 20  # J, at most
FLOOR_DRAWS = 8  # repeated draws of training examples, at most
SUBSET_SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of n: sizes of the nested subsets
MIN_EXAMPLES = 3  # after one is left out, two remain: the least number with a covariance
MIN_EXAMPLES_NESTED = 4 * GROUPS  # two of every group in the smallest subset
ORDER = 1  # stream number, used with the seed to shuffle the reference

Array = np.ndarray[Any, Any]


def frechet(features: Features, model: CanSample, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return ``fd``: the mean over repeated draws of n samples, each compared with the same n held-out examples."""
    name = in_features("fd", features)
    return {name: _measurement(name, features, lambda draw: context.drawn(features, model, draw), context, context.draws)}


def real_data_floor(features: Features, context: EvaluationContext) -> Measurement:
    """Return the floor of ``fd``: n training examples, drawn without replacement, take the place of the samples.

    At most FLOOR_DRAWS draws: no comparison pairs them with a model's, and features of examples take as long as of samples.
    """
    draws = context.progress.over(range(min(context.settings.draws, FLOOR_DRAWS)))
    return _measurement(in_features("fd", features), features, lambda draw: context.training(features, draw), context, draws)


def frechet_infinity(features: Features, model: CanSample, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return ``fd_infinity``: the mean over repeated draws of the intercept over nested subsets of both sides."""
    name = in_features("fd_infinity", features)
    drawn = partial(context.drawn, features, model)
    return {name: _measurement(name, features, drawn, context, context.draws, SUBSET_SHARES)}


def _measurement(
    name: str,
    features: Features,
    side: Callable[[int], Array],
    context: EvaluationContext,
    draws: Iterable[int],
    shares: Sequence[float] = (1.0,),
) -> Measurement:
    """Return the intercept over nested subsets of these shares; for one share, the distance. ``side``: features of a draw."""
    n = context.size(name, MIN_EXAMPLES if len(shares) == 1 else MIN_EXAMPLES_NESTED)
    sizes_S = [round(share * n) for share in shares]
    weight_S = _intercept_weights(sizes_S)
    real_ND = _shuffled(context.real(features), context.settings.seed)
    real_S = _nested(real_ND, sizes_S)
    values, merged = [], None
    for draw in draws:
        drawn_S = _nested(side(draw), sizes_S)
        values.append(float(weight_S @ list(map(frechet_distance, drawn_S, real_S))))
        merged = drawn_S[-1] if merged is None else merged + drawn_S[-1]
    assert merged is not None, "there are at least two draws"
    groups = min(GROUPS, n)
    without = []
    for group in range(groups):  # takes an equal share of every subset, so that the line keeps its intercept
        left_S = [real - Moments.of(real_ND[group:size:groups]) for real, size in zip(real_S, sizes_S, strict=True)]
        without.append(float(weight_S @ [frechet_distance(merged, left) for left in left_S]))
    how = context.measured_in(features, **({"sizes": sizes_S} if len(shares) > 1 else {}))
    return Measurement.over_draws(
        finite(np.array(values, dtype=np.float64), name),
        n,
        context,
        reference_J=finite(intervals.pseudo_values(without), name),
        **how,
    )


def _nested(f_ND: Array, sizes_S: Sequence[int]) -> list[Moments]:
    """Return the moments of the first ``size`` features, for each size in ascending order."""
    parts = [Moments.of(f_ND[start:stop]) for start, stop in pairwise([0, *sizes_S])]
    return list(accumulate(parts))


def _intercept_weights(sizes_S: Sequence[int]) -> Array:
    """Return the weight of each value in the least-squares intercept of values over 1/size; 1 for a single size."""
    line_S2 = np.array([[1.0, 1.0 / size] for size in sizes_S])
    weight_S: Array = np.linalg.pinv(line_S2)[0] if len(sizes_S) > 1 else np.ones(1)
    return weight_S


def _shuffled(f_ND: Array, seed: int) -> Array:
    """Shuffle the features, so that groups and subsets are random whatever the order of the data."""
    shuffled_ND: Array = f_ND[np.random.default_rng([DISTANCE, ORDER, seed]).permutation(len(f_ND))]
    return shuffled_ND


METRICS: dict[str, Metric] = {}
for _features in FEATURES:
    _fd = in_features("fd", _features)
    METRICS[_fd] = Metric(partial(frechet, _features), {f"{_fd}_floor": partial(real_data_floor, _features)})
    METRICS[in_features("fd_infinity", _features)] = Metric(partial(frechet_infinity, _features))
