"""What every metric is measured with, and what a measurement is.

Shapes: N values, B block, X the axes of one example (C, H, W of an image, D of a table's row).
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
DEQUANTISATION, IMPORTANCE, DISTANCE, PICTURE, AGREEMENT = range(5)

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

    def held_out_blocks(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """The held-out examples in blocks x_BX with their labels y_B, where there are any, each with its number."""
        held_out = self.dataset.held_out
        for number, at in enumerate(range(0, len(held_out), BLOCK)):
            chosen = slice(at, at + BLOCK)
            y_B = None if held_out.y_N is None else torch.from_numpy(np.array(held_out.y_N[chosen]))
            yield number, torch.from_numpy(np.array(held_out.x_NX[chosen])), y_B


@dataclass(frozen=True)
class Measurement:
    """The values behind one metric, one an example or one a repeated draw: the metric is their mean."""

    values_N: Array  # float64
    n: int  # examples, or samples of one draw
    low: float  # limits of the 95% interval of the mean
    high: float
    fingerprint: dict[str, Any] = field(default_factory=dict)

    by_class: dict[int, Measurement] = field(default_factory=dict)  # the same over the examples of each class

    @classmethod
    def over_examples(cls, values_N: Array, bench: Bench, y_N: Array | None = None, **how: Any) -> Measurement:
        """One value for each held-out example; with their labels also class by class."""
        low, high = intervals.over_examples(values_N, bench.settings.seed)
        fingerprint = bench.fingerprint(**how, n=len(values_N), interval="bootstrap over examples")
        classes = [] if y_N is None else np.unique(y_N).tolist()
        by_class = {y: cls.over_examples(values_N[y_N == y], bench, **how, of_class=y) for y in classes}
        return cls(values_N, len(values_N), low, high, fingerprint, by_class)

    @classmethod
    def over_draws(
        cls, values_N: Array, n: int, bench: Bench, by_class: dict[int, Measurement] | None = None, **how: Any
    ) -> Measurement:
        """One value for each repeated draw of ``n`` samples."""
        low, high = intervals.over_draws(values_N)
        fingerprint = bench.fingerprint(**how, n=n, draws=len(values_N), interval="t over draws")
        return cls(values_N, n, low, high, fingerprint, by_class or {})


def finite(values_N: Array, metric: str) -> Array:
    """The values, each of them finite. Raises RunError, which counts them, where one is not: none is ever left out."""
    bad = int((~np.isfinite(values_N)).sum())
    if bad:
        raise RunError(
            f"metric {metric}: {bad} of {len(values_N)} values are not finite: this model cannot be judged, train again"
        )
    return values_N


def samples(model: CanSample, spec: DataSpec, count: int, *seed: int, y_N: Array | None = None) -> Array:
    """``count`` samples x_NX: a pure function of the model and ``seed``, of which the second number is the stream.

    ``y_N``: the classes that a conditional model is to draw of. Raises RunError where they are not examples of ``spec``.
    """
    blocks = []
    for number, at in enumerate(range(0, count, BLOCK)):
        noise_BN = standard_normal((min(BLOCK, count - at), model.sample_noise), *seed, number)
        blocks.append(model.sample(noise_BN, None if y_N is None else torch.from_numpy(y_N[at : at + BLOCK])).numpy())
    x_NX: Array = np.concatenate(blocks)
    wrong = _wrong_row(x_NX, spec) if spec.is_table else _wrong_image(x_NX, spec)
    if wrong:
        raise RunError(f"the model's samples are not examples of the dataset: {wrong}")
    return x_NX


def _wrong_image(x_NX: Array, spec: DataSpec) -> str | None:
    if x_NX.dtype != np.uint8 or x_NX.shape[1:] != spec.shape or x_NX.max() >= spec.levels:
        return f"{x_NX.dtype} {x_NX.shape[1:]} up to {x_NX.max()}, and its images are uint8 {spec.shape} below {spec.levels}"
    return None


def _wrong_row(x_ND: Array, spec: DataSpec) -> str | None:
    if x_ND.dtype != np.float32 or x_ND.shape[1:] != spec.shape:
        return f"{x_ND.dtype} {x_ND.shape[1:]}, and its rows are float32 {spec.shape}"
    for column, value_N in zip(spec.columns, x_ND.T, strict=True):
        if not np.isfinite(value_N).all():
            return f"column '{column.name}' has values that are not finite"
        if column.categories and not np.isin(value_N, range(len(column.categories))).all():
            return f"column '{column.name}' has values that are not places of its {len(column.categories)} categories"
    return None
