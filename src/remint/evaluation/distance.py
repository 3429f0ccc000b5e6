"""``fd_domain``: the Frechet distance of samples to held-out images in the features of the dataset itself. Lower is better.

The distance of finite sets is biased upwards, the more the fewer they are (Chong & Forsyth, Effectively unbiased FID,
2020). So every distance here is between the same number n of images on both sides, and the floor beside it says
what real images reach.

Shapes: N examples, C channels, H height, W width, D features, M draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from remint.data.arrays import Split
from remint.errors import DataError
from remint.evaluation.bench import DISTANCE, Bench, Measurement, finite, samples
from remint.evaluation.frechet import Moments, frechet_distance
from remint.models.contract import CanSample

Array = np.ndarray[Any, Any]


def domain(model: CanSample, bench: Bench) -> Mapping[str, Measurement]:
    """The mean over repeated draws of n samples, each against the same n held-out images."""
    n, real = _reference(bench)
    seed, spec = bench.settings.seed, bench.dataset.spec
    draws = range(bench.settings.draws)
    distances = [_distance(samples(model, spec, n, seed, DISTANCE, draw), real, bench) for draw in draws]
    return {"fd_domain": _measurement(distances, n, bench)}


def floor(bench: Bench) -> Measurement:
    """The same with n training images, drawn without replacement, in place of the samples: what real images reach."""
    n, real = _reference(bench)
    train = bench.dataset.train
    draws = range(bench.settings.draws)
    distances = [_distance(_drawn(train, n, bench.settings.seed, draw), real, bench) for draw in draws]
    return _measurement(distances, n, bench)


def _reference(bench: Bench) -> tuple[int, Moments]:
    """n, and the moments of n held-out images, which are chosen by the seed.

    n is what settings.samples asks for, as far as held-out and training images suffice.
    """
    dataset, settings = bench.dataset, bench.settings
    n = min(settings.samples, len(dataset.held_out), len(dataset.train))
    if n < 2:
        name = dataset.version.name
        raise DataError(
            f"fd_domain needs 2 images on each side, and {n} can be had: use more images, or raise "
            f"datasets.{name}.split.held_out and evaluation.samples in params.yaml"
        )
    return n, Moments.of(bench.extractor(_drawn(dataset.held_out, n, settings.seed)))


def _drawn(split: Split, n: int, *seed: int) -> Array:
    """n different images x_NX of a split, in its own order."""
    chosen = np.random.default_rng([DISTANCE, *seed]).permutation(len(split))[:n]
    x_NX: Array = np.array(split.x_NX[np.sort(chosen)])
    return x_NX


def _distance(x_NX: Array, real: Moments, bench: Bench) -> float:
    return frechet_distance(Moments.of(bench.extractor(x_NX)), real)


def _measurement(distances: list[float], n: int, bench: Bench) -> Measurement:
    values_M = finite(np.array(distances, dtype=np.float64), "fd_domain")
    return Measurement.over_draws(values_M, n, bench, extractor=bench.extractor.sha256)
