"""What samples say of a model, in the features of the dataset itself.

``fd_domain``        the Frechet distance of samples to held-out examples; lower is better
``class_agreement``  the share of a conditional model's samples that a classifier takes for the class that was asked for

The distance of finite sets is biased upwards, the more the fewer they are (Chong & Forsyth, Effectively unbiased FID,
2020). So every distance here is between the same number n of examples on both sides, and the floor beside it says
what real ones reach.

Shapes: N examples, X the axes of one example, D features, M draws, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from remint.data.arrays import Split
from remint.errors import DataError, SettingsError
from remint.evaluation.bench import AGREEMENT, DISTANCE, Bench, Measurement, finite, samples
from remint.evaluation.frechet import Moments, frechet_distance
from remint.models.contract import CanSample

Array = np.ndarray[Any, Any]


def domain(model: CanSample, bench: Bench) -> Mapping[str, Measurement]:
    """The mean over repeated draws of n samples, each against the same n held-out examples."""
    n, real = _reference(bench)
    seed, spec = bench.settings.seed, bench.dataset.spec
    draws = range(bench.settings.draws)
    distances = [_distance(samples(model, spec, n, seed, DISTANCE, draw), real, bench) for draw in draws]
    return {"fd_domain": _measurement(distances, n, bench)}


def floor(bench: Bench) -> Measurement:
    """The same with n training examples, drawn without replacement, in place of the samples: what real ones reach."""
    n, real = _reference(bench)
    train = bench.dataset.train
    draws = range(bench.settings.draws)
    distances = [_distance(_drawn(train, n, bench.settings.seed, draw), real, bench) for draw in draws]
    return _measurement(distances, n, bench)


def agreement(model: CanSample, bench: Bench) -> Mapping[str, Measurement]:
    """As many samples of each class, in each draw, held against what the features' classifier takes them for.

    Raises SettingsError where the model is not conditional or the features are not a classifier's.
    """
    if not getattr(model, "conditional", False):
        raise SettingsError("class_agreement needs a model with conditional: true: set it, or remove the metric")
    if bench.extractor.classify is None:
        raise SettingsError("class_agreement needs images with labels, whose features are a classifier's: remove it")
    spec, settings = bench.dataset.spec, bench.settings
    each = max(1, settings.samples // spec.classes)
    asked_N = np.repeat(np.arange(spec.classes), each)
    hit_MN = np.array(
        [
            bench.extractor.classify(samples(model, spec, len(asked_N), settings.seed, AGREEMENT, draw, y_N=asked_N)) == asked_N
            for draw in range(settings.draws)
        ],
        dtype=np.float64,
    )
    how: dict[str, Any] = {"extractor": bench.extractor.sha256}
    by_class = {
        y: Measurement.over_draws(hit_MN[:, asked_N == y].mean(axis=1), each, bench, **how, of_class=y)
        for y in range(spec.classes)
    }
    return {"class_agreement": Measurement.over_draws(hit_MN.mean(axis=1), len(asked_N), bench, by_class=by_class, **how)}


def _reference(bench: Bench) -> tuple[int, Moments]:
    """n, and the moments of n held-out examples, which are chosen by the seed.

    n is what settings.samples asks for, as far as held-out and training examples suffice.
    """
    dataset, settings = bench.dataset, bench.settings
    n = min(settings.samples, len(dataset.held_out), len(dataset.train))
    if n < 2:
        name = dataset.version.name
        raise DataError(
            f"fd_domain needs 2 examples on each side, and {n} can be had: use more data, or raise "
            f"datasets.{name}.split.held_out and evaluation.samples in params.yaml"
        )
    return n, Moments.of(bench.extractor(_drawn(dataset.held_out, n, settings.seed)))


def _drawn(split: Split, n: int, *seed: int) -> Array:
    """n different examples x_NX of a split, in its own order."""
    chosen = np.random.default_rng([DISTANCE, *seed]).permutation(len(split))[:n]
    x_NX: Array = np.array(split.x_NX[np.sort(chosen)])
    return x_NX


def _distance(x_NX: Array, real: Moments, bench: Bench) -> float:
    return frechet_distance(Moments.of(bench.extractor(x_NX)), real)


def _measurement(distances: list[float], n: int, bench: Bench) -> Measurement:
    values_M = finite(np.array(distances, dtype=np.float64), "fd_domain")
    return Measurement.over_draws(values_M, n, bench, extractor=bench.extractor.sha256)
