"""Data whose features are the data themselves, and models that draw samples chosen by the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.data.arrays import Dataset, Split
from remint.evaluation.context import EvaluationContext
from remint.records import Column, DatasetVersion, DataSpec
from remint.settings.judging import EvaluationSettings

Array = np.ndarray[Any, Any]


@dataclass
class IdentityExtractor:
    """Extractor whose features are the unchanged columns. It counts its examples."""

    sha256: str = "0" * 64
    name: str = "domain"
    resize: str = "none"
    seen: list[int] = field(default_factory=list)
    classify: Callable[[Array], Array] | None = None

    def __call__(self, x_NX: Array) -> Array:
        self.seen.append(len(x_NX))
        f_ND: Array = x_NX.astype(np.float64)
        return f_ND


@dataclass(eq=False)
class Sampler:
    """x = draw(z), z standard normal with as many numbers as there are columns. It counts its calls."""

    draw: Callable[[Tensor], Tensor]
    sample_noise: int
    calls: int = 0

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.draw(noise_BN).float()


def make_table(
    train_ND: Array, held_out_ND: Array, y_N: Array | None = None, columns: tuple[Column, ...] | None = None
) -> Dataset:
    """Make a table of these rows."""
    columns = columns or tuple(Column(name=f"c{d}") for d in range(train_ND.shape[1]))
    spec = DataSpec(shape=(len(columns),), columns=columns, classes=0 if y_N is None else int(y_N.max()) + 1)
    version = DatasetVersion(name="rows", source="rows.csv", raw_sha256="", spec=spec, split={}, counts={}, files={})
    train = Split(train_ND.astype(np.float32), None if y_N is None else np.zeros(len(train_ND), dtype=np.int64))
    return Dataset(version, train, train, Split(held_out_ND.astype(np.float32), y_N))


def context_of(dataset: Dataset, extractor: Any = None, **settings: Any) -> EvaluationContext:
    """Return a context with all held-out examples in the reference, unless ``samples`` limits them."""
    settings = {"samples": len(dataset.held_out), "draws": 2, **settings}
    return EvaluationContext(dataset, {"domain": extractor or IdentityExtractor()}, EvaluationSettings(**settings))


def normal_rows(count: int, dims: int, seed: int) -> Array:
    """Return rows of standard normal numbers, rounded to float32."""
    return np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32)


def constant_draw(x_ND: Array) -> Callable[[Tensor], Tensor]:
    """Return a draw function that gives these rows in order for any noise."""
    return lambda noise_BN: torch.from_numpy(x_ND)[: len(noise_BN)]
