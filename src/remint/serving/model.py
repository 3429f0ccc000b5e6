"""A registered model in use, wherever its bundle lies.

Shapes: N samples, C channels, H height, W width, Z noise numbers that one sample takes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from remint.errors import UserError
from remint.models.bundle import MODEL, load_model
from remint.models.contract import CanSample, Model, standard_normal
from remint.records import DataSpec

BATCH = 1024  # samples that are drawn at a time


@dataclass(frozen=True)
class ServedModel:
    """A model in eval mode and what it knows of its data."""

    model: Model
    spec: DataSpec

    def sample(self, count: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """``count`` samples, uint8, shape (N, C, H, W), values 0 .. levels-1. Sample i depends on ``seed`` and i only."""
        return self._draw([(seed, index) for index in range(count)])

    def sample_each(self, seeds: list[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """One sample for each seed: the first that ``sample`` draws with it."""
        return self._draw([(seed, 0) for seed in seeds])

    @torch.no_grad()
    def _draw(self, keys: list[tuple[int, int]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if not isinstance(self.model, CanSample):
            raise UserError(f"a {type(self.model).__name__} draws no samples")
        parts = []
        for start in range(0, len(keys), BATCH):
            noise_NZ = torch.stack([standard_normal((self.model.sample_noise,), "sample", *key) for key in keys[start : start + BATCH]])
            parts.append(self.model.sample(noise_NZ).numpy())
        return np.concatenate(parts) if parts else np.empty((0, *self.spec.shape), np.uint8)


def load(folder: Path) -> ServedModel:
    """The model of a bundle, every file held against the manifest first. Raises IntegrityError."""
    model = load_model(folder)
    return ServedModel(model, DataSpec.model_validate(json.loads((folder / MODEL).read_bytes())["spec"]))
