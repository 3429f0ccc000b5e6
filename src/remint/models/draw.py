"""Draw samples for serving, in blocks of one size. Each sample is a function of its seed, index and class alone.

Shapes: B block, N requested samples, X the axes of one example (C, H, W of an image, D of a table's row); noise numbers are
the second axis of ``noise_BD``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from remint.models.contract import CanSample, standard_normal
from remint.records import DataSpec

# Number of samples in every forward pass. The rounding of a matrix product depends on its number of rows: with blocks of
# one size, sample i is the same in a batch of 1 and of 1,000. Samples beyond the count are dropped.
BLOCK = 64


def draw(
    model: CanSample,
    spec: DataSpec,
    places: Sequence[tuple[int, int]],
    classes: Sequence[int] | None = None,  # for a conditional model
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Return x_NX: for each (seed, index), the sample with that index in the series of that seed, of its class if given.

    Images are uint8; rows of a table are float32, as in records.DataSpec.
    """
    out_NX = np.empty((len(places), *spec.shape), np.float32 if spec.is_table else np.uint8)
    for start in range(0, len(places), BLOCK):
        block = places[start : start + BLOCK]
        noise_BD = torch.zeros(BLOCK, model.sample_noise)
        for row, (seed, index) in enumerate(block):
            noise_BD[row] = standard_normal((model.sample_noise,), seed, index)
        y_B = None
        if classes is not None:
            y_B = torch.zeros(BLOCK, dtype=torch.int64, device=device)
            y_B[: len(block)] = torch.tensor(classes[start : start + BLOCK])
        with torch.inference_mode():
            x_BX = model.sample(noise_BD.to(device), y_B)
        out_NX[start : start + BLOCK] = x_BX[: len(block)].cpu().numpy()
    return out_NX
