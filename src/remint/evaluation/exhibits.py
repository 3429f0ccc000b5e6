"""Examples for visual inspection: training examples nearest to samples, and held-out examples with the worst values.

Every array is small and a pure function of the model and the dataset version, with the same noise for every version.

    nearest.npz    near_NX       the training example nearest to each of the first samples
                   distance_N    its distance
                   real_M        distances of M held-out examples to their nearest training example, for comparison
    failures.npz   metric        the ranking metric: a likelihood, or "uncovered" if the model has none
                   place_N       indices in the held-out split, the worst first
                   row_N         rows of their values in values.npz, or in all_M
                   x_NX, y_N     the examples, and their labels if there are any
                   value_N       their values
                   all_M         only with "uncovered": values of the first M held-out examples (a likelihood has values.npz)

``uncovered`` is the distance of a held-out example to the nearest of many samples. Distances are Euclidean: between images
the root mean square over pixels and channels, in levels; between rows in the coordinates of ``novelty``
(evaluation/neighbours.py).

Shapes: N, M examples, X the axes of one example, D coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from remint.data.arrays import Dataset
from remint.evaluation.context import PICTURE, judged_examples, samples
from remint.evaluation.neighbours import to_nearest
from remint.models.contract import CanSample
from remint.records import DataSpec

SHOWN = 16  # samples with their neighbours, and failures
MAX_REAL = 256  # maximum number of held-out examples in real_M
MAX_UNCOVERED = 4096  # maximum number of held-out examples whose ``uncovered`` is computed
UNCOVERED_SAMPLES = 512  # samples for ``uncovered``
LIKELIHOODS = ("nll", "iwae", "elbo")  # the most exact first

Array = np.ndarray[Any, Any]


def nearest(sample_NX: Array, dataset: Dataset) -> dict[str, Array]:
    """Return the arrays of nearest.npz."""
    train_NX, spec = dataset.train.x_NX, dataset.spec
    distance_N, place_N = _nearest(sample_NX[:SHOWN], train_NX, spec)
    real_M, _ = _nearest(dataset.held_out.x_NX[:MAX_REAL], train_NX, spec)
    return {"near_NX": np.stack([np.array(train_NX[place]) for place in place_N]), "distance_N": distance_N, "real_M": real_M}


def failures(values: Mapping[str, Array], model: object, dataset: Dataset, seed: int) -> dict[str, Array] | None:
    """Return the arrays of failures.npz; None if the model has no likelihood and cannot sample.

    ``values``: of each metric, as the evaluation with this seed measured them.
    """
    metric = next((name for name in LIKELIHOODS if name in values), None)
    if metric is not None:
        value_M, kept = values[metric], {}
    elif isinstance(model, CanSample):
        drawn_NX = samples(model, dataset.spec, UNCOVERED_SAMPLES, 0, PICTURE, 1)
        value_M, _ = _nearest(dataset.held_out.x_NX[:MAX_UNCOVERED], drawn_NX, dataset.spec)
        metric, kept = "uncovered", {"all_M": value_M}
    else:
        return None
    held_out, row_N = dataset.held_out, np.argsort(-value_M, kind="stable")[:SHOWN]
    place_N = row_N if "all_M" in kept else judged_examples(len(held_out), len(value_M), seed)[row_N]
    labels = {} if held_out.y_N is None else {"y_N": np.array(held_out.y_N[place_N])}
    shown = {"place_N": place_N, "row_N": row_N, "x_NX": np.array(held_out.x_NX[place_N]), "value_N": value_M[row_N]}
    return {"metric": np.array(metric), **shown, **labels, **kept}


def _nearest(x_NX: Array, others_MX: Array, spec: DataSpec) -> tuple[Array, Array]:
    """Return distance and index of the nearest of the others, the first of equal ones."""
    distance_N, place_N = to_nearest(x_NX, others_MX, spec)
    parts = 1 if spec.is_table else spec.dims
    return (distance_N / parts**0.5).numpy(), place_N.numpy()
