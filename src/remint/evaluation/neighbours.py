"""Nearest-neighbour metrics of samples: fidelity, diversity and novelty.

B_i is the ball around held-out example i whose radius reaches its k-th nearest held-out neighbour, in feature space.

``precision``  fidelity: the share of the samples in at least one B_i
``density``    fidelity: the mean over the samples of the number of B_i that contain it, divided by k; 1 for equal sets
``coverage``   diversity: the share of the held-out examples whose B_i contains at least one sample
``recall``     diversity: the share of the held-out examples in at least one such ball around the samples
``novelty``    mean distance of samples to the nearest training example, divided by that of held-out examples, in data space;
               0: all are copies, 1: as new as the held-out examples

Higher is better. Precision and recall: Kynkaanniemi et al., Improved precision and recall metric for assessing generative
models, 2019 (there k = 3 for tens of thousands of samples). Density and coverage: Naeem et al., Reliable fidelity and
diversity metrics for generative models, 2020 (k = 5). Here k = 5 for all four, so that they use the same balls. Noise has
the highest novelty: read it together with the other metrics.

Shapes: N held-out examples and as many samples, M training examples, X the axes of one example, D features or coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.data.arrays import Split
from remint.errors import DataError
from remint.evaluation import pairs
from remint.evaluation.context import EvaluationContext, Measurement, Metric, finite
from remint.evaluation.features import Columns
from remint.models.contract import CanSample
from remint.records import DataSpec
from remint.settings.catalogue import FEATURES, Features, in_features

NEIGHBOURS = 5  # k

Array = np.ndarray[Any, Any]


def fidelity(features: Features, model: CanSample, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return ``precision``, ``density`` and ``coverage``; coverage also by class if there are labels."""
    names = [in_features(metric, features) for metric in ("precision", "density", "coverage")]
    context.size(names[0], NEIGHBOURS + 1)
    centre_D, real_ND = _centred(context.real(features))
    radius_N = pairs.radii(real_ND, NEIGHBOURS)
    values, reached = [], []
    for draw in context.draws:
        drawn_ND = torch.from_numpy(context.drawn(features, model, draw)) - centre_D
        within_N, reached_N = _within(drawn_ND, real_ND, radius_N)
        values.append(((within_N > 0).double().mean(), within_N.double().mean() / NEIGHBOURS, reached_N.double().mean()))
        reached.append(reached_N.double())
    precision, density, coverage = (
        _measurement(name, np.array(values_M), features, context)
        for name, values_M in zip(names, zip(*values, strict=True), strict=True)
    )
    by_class = _by_class(torch.stack(reached).numpy(), features, context)
    return dict(zip(names, (precision, density, replace(coverage, by_class=by_class)), strict=True))


def recall(features: Features, model: CanSample, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return ``recall``: the share of the held-out examples in balls around the samples, mean over repeated draws."""
    name = in_features("recall", features)
    context.size(name, NEIGHBOURS + 1)
    centre_D, real_ND = _centred(context.real(features))
    values = []
    for draw in context.draws:
        drawn_ND = torch.from_numpy(context.drawn(features, model, draw)) - centre_D
        within_N, _ = _within(real_ND, drawn_ND, pairs.radii(drawn_ND, NEIGHBOURS))
        values.append((within_N > 0).double().mean())
    return {name: _measurement(name, np.array(values), features, context)}


def novelty(model: CanSample, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return ``novelty``. Raises DataError if every held-out example is a copy of a training example."""
    n, train = context.size("novelty", 2), context.dataset.train
    held_out_NX = np.array(context.dataset.held_out.x_NX[context.reference()])
    usual = _to_nearest(held_out_NX, train, context.dataset.spec)
    if usual == 0.0:
        name = context.dataset.version.name
        raise DataError(f"novelty: every held-out example of {name} is also in its training split: remove the metric")
    values = [_to_nearest(context.sampled(model, draw), train, context.dataset.spec) / usual for draw in context.draws]
    return {"novelty": Measurement.over_draws(finite(np.array(values), "novelty"), n, context, space="data")}


def coordinates(x_NX: Array, spec: DataSpec) -> Tensor:
    """Return the coordinates of examples in data space, float64 (N, D).

    Images: pixels in levels. Tables: standardised numbers and one-hot categories. Two categories have a squared distance of
    2, which is also the mean for two numbers. A missing value is 0, with an indicator of 1 beside it.
    """
    x_ND = torch.from_numpy(np.array(x_NX, dtype=np.float64).reshape(len(x_NX), -1))
    return Columns.encoded(spec.columns, x_ND) if spec.is_table else x_ND


def to_nearest(x_NX: Array, others_MX: Array, spec: DataSpec) -> tuple[Tensor, Tensor]:
    """Return the distance of each example to the nearest of the others, and its index. A part of either side is in memory."""
    rows = pairs.rows(coordinates(others_MX[:1], spec).shape[1])
    distances, places = [], []
    for at in range(0, len(x_NX), rows):
        x_BD = coordinates(x_NX[at : at + rows], spec)
        best_B = torch.full((len(x_BD),), torch.inf, dtype=x_BD.dtype)
        place_B = torch.zeros(len(x_BD), dtype=torch.int64)
        for start in range(0, len(others_MX), rows):
            distance_B, found_B = pairs.nearest(x_BD, coordinates(others_MX[start : start + rows], spec))
            closer_B = distance_B < best_B
            best_B, place_B = torch.where(closer_B, distance_B, best_B), torch.where(closer_B, start + found_B, place_B)
        distances.append(best_B)
        places.append(place_B)
    return torch.cat(distances), torch.cat(places)


def _to_nearest(x_NX: Array, train: Split, spec: DataSpec) -> float:
    """Return the mean distance of examples to the nearest training example."""
    return float(to_nearest(x_NX, train.x_NX, spec)[0].mean())


def _centred(f_ND: Array) -> tuple[Tensor, Tensor]:
    """Return the mean of the features, and the centred features: distances of short vectors lose less to rounding."""
    real_ND = torch.from_numpy(f_ND)
    centre_D = real_ND.mean(dim=0)
    return centre_D, real_ND - centre_D


def _within(a_ND: Tensor, centre_MD: Tensor, radius_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of balls that contain each of a, int64 (N,), and the balls that contain any, bool (M,).

    Radii are squared.
    """
    count_N = torch.zeros(len(a_ND), dtype=torch.int64)
    holds_M = torch.zeros(len(centre_MD), dtype=torch.bool)
    granted_N, reach_M = pairs.rounding_error(a_ND), radius_M + pairs.rounding_error(centre_MD)
    for rows, columns, d_AB in pairs.blocks(a_ND, centre_MD):
        inside_AB = d_AB <= reach_M[columns] + granted_N[rows, None]
        count_N[rows] += inside_AB.sum(dim=1)
        holds_M[columns] |= inside_AB.any(dim=0)
    return count_N, holds_M


def _by_class(reached_MN: Array, features: Features, context: EvaluationContext) -> dict[int, Measurement]:
    """Return the coverage of the held-out examples of each class."""
    y_N = context.dataset.held_out.y_N
    if y_N is None:
        return {}
    y_N = np.array(y_N)[context.reference()]
    how = context.measured_in(features, neighbours=NEIGHBOURS)
    return {
        y: Measurement.over_draws(reached_MN[:, y_N == y].mean(axis=1), int((y_N == y).sum()), context, **how, of_class=y)
        for y in np.unique(y_N).tolist()
    }


def _measurement(name: str, values_M: Array, features: Features, context: EvaluationContext) -> Measurement:
    how = context.measured_in(features, neighbours=NEIGHBOURS)
    return Measurement.over_draws(finite(values_M, name), context.size(name, 1), context, **how)


METRICS = {"novelty": Metric(novelty)}
for _features in FEATURES:
    _fidelity = Metric(partial(fidelity, _features))
    METRICS |= {in_features(metric, _features): _fidelity for metric in ("precision", "density", "coverage")}
    METRICS[in_features("recall", _features)] = Metric(partial(recall, _features))
