"""What was promoted, in use: a registered bundle that draws samples.

Shapes: B block, C channels, H height, W width, N samples asked for; noise numbers are the second axis of ``noise_BD``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from remint.errors import UserError
from remint.models.bundle import MODEL, load_model
from remint.models.contract import CanSample, standard_normal
from remint.records import DataSpec

# Samples in one forward pass, always: a matrix product's rounding depends on how many rows it has, so that blocks of
# one size are what makes sample i the same in a batch of 1 and of 1,000. What is drawn beyond the count is dropped.
BLOCK = 64


@dataclass(frozen=True)
class ServedModel:
    """A model that can sample, and what it knows of its data."""

    model: CanSample
    spec: DataSpec
    device: str = "cpu"

    def sample(self, count: int, seed: int) -> np.ndarray:
        """x_NX, uint8, values 0 .. levels-1. Sample i is a function of (seed, i) alone, whatever the count."""
        return self.draw([(seed, index) for index in range(count)])

    def draw(self, places: Sequence[tuple[int, int]]) -> np.ndarray:
        """x_NX, uint8: for each (seed, index) the sample of that index in the series of that seed."""
        out_NX = np.empty((len(places), *self.spec.shape), np.uint8)
        for start in range(0, len(places), BLOCK):
            block = places[start : start + BLOCK]
            noise_BD = torch.zeros(BLOCK, self.model.sample_noise)
            for row, (seed, index) in enumerate(block):
                noise_BD[row] = standard_normal((self.model.sample_noise,), seed, index)
            with torch.inference_mode():
                x_BX = self.model.sample(noise_BD.to(self.device))
            out_NX[start : start + BLOCK] = x_BX[: len(block)].cpu().numpy()
        return out_NX


def load(folder: Path, device: str = "cpu") -> ServedModel:
    """The model of a registered bundle, verified against its manifest.

    Raises IntegrityError where a file is not what the manifest says, UserError where the family cannot sample.
    """
    model = load_model(folder, device)
    if not isinstance(model, CanSample):
        raise UserError(f"{folder}: its family has no sample; use one that has")
    spec = DataSpec.model_validate(json.loads((folder / MODEL).read_bytes())["spec"])
    return ServedModel(model, spec, device)
