"""What every metric is measured with, and what a measurement is.

Shapes: N values, B block, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.config import EvaluationSettings
from remint.data.arrays import Dataset
from remint.errors import RunError
from remint.evaluation import intervals
from remint.evaluation.features import Extractor
from remint.models.contract import CanSample, standard_normal
from remint.records import DataSpec

BLOCK = 128  # examples at a time: their noise is drawn by (seed, stream, draw, block), so a changed size changes the noise

# Streams: what noise is drawn for, so that no two uses share it.
DEQUANTISATION, IMPORTANCE, DISTANCE, PICTURE = range(4)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Bench:
    """The dataset version, the features and the settings that a model is measured with."""

    dataset: Dataset
    extractor: Extractor
    settings: EvaluationSettings

    def fingerprint(self, **how: Any) -> dict[str, Any]:
        """What two values must have in common to be comparable: the data, the seed and ``how`` it was measured."""
        return {"dataset": self.dataset.version.digest, "split": "held_out", "seed": self.settings.seed, **how}

    def held_out_blocks(self) -> Iterator[tuple[int, Tensor]]:
        """The held-out images in blocks x_BX (uint8), each with its number."""
        x_NX = self.dataset.held_out.x_NX
        for number, at in enumerate(range(0, len(x_NX), BLOCK)):
            yield number, torch.from_numpy(np.array(x_NX[at : at + BLOCK]))


@dataclass(frozen=True)
class Measurement:
    """The values behind one metric, one an example or one a repeated draw: the metric is their mean."""

    values_N: Array  # float64
    n: int  # examples, or samples of one draw
    low: float  # limits of the 95% interval of the mean
    high: float
    fingerprint: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def over_examples(cls, bits_N: Array, bench: Bench, **how: Any) -> Measurement:
        """One value for each held-out example."""
        low, high = intervals.over_examples(bits_N, bench.settings.seed)
        return cls(bits_N, len(bits_N), low, high, bench.fingerprint(**how, n=len(bits_N), interval="bootstrap over examples"))

    @classmethod
    def over_draws(cls, values_N: Array, n: int, bench: Bench, **how: Any) -> Measurement:
        """One value for each repeated draw of ``n`` samples."""
        low, high = intervals.over_draws(values_N)
        return cls(values_N, n, low, high, bench.fingerprint(**how, n=n, draws=len(values_N), interval="t over draws"))


def finite(values_N: Array, metric: str) -> Array:
    """The values, each of them finite. Raises RunError, which counts them, where one is not: none is ever left out."""
    bad = int((~np.isfinite(values_N)).sum())
    if bad:
        raise RunError(
            f"metric {metric}: {bad} of {len(values_N)} values are not finite: this model cannot be judged, train again"
        )
    return values_N


def samples(model: CanSample, spec: DataSpec, count: int, *seed: int) -> Array:
    """``count`` samples x_NX, uint8: a pure function of the model and ``seed``, of which the second number is the stream.

    Raises RunError where they are not images of the dataset's shape and levels.
    """
    blocks = []
    for number, at in enumerate(range(0, count, BLOCK)):
        noise_BN = standard_normal((min(BLOCK, count - at), model.sample_noise), *seed, number)
        blocks.append(model.sample(noise_BN).numpy())
    x_NX: Array = np.concatenate(blocks)
    if x_NX.dtype != np.uint8 or x_NX.shape[1:] != spec.shape or x_NX.max() >= spec.levels:
        found = f"{x_NX.dtype} {x_NX.shape[1:]} up to {x_NX.max()}"
        raise RunError(f"the model's samples are {found}; the dataset's images are uint8 {spec.shape} below {spec.levels}")
    return x_NX
