"""Draw samples for serving, in blocks of one size. Each sample is a function of its seed, index and class alone.

Shapes: B block, N requested samples, X the axes of one example (C, H, W of an image, D of a table's row); noise numbers are
the second axis of ``noise_BD``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from remint.models.contract import CanSample, Model, seed_word
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
    latent: int = 0,  # Z: the first numbers of the noise, which are multiplied by ...
    temperature: float = 1.0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return x_NX, for each (seed, index) the sample with that index in the series of that seed, and the class of each.

    Images are uint8; rows of a table are float32, as in records.DataSpec. The classes are those given, else those that the
    model draws, int64 (N,); None if it draws none.
    """
    out_NX = np.empty((len(places), *spec.shape), np.float32 if spec.is_table else np.uint8)
    y_N: np.ndarray | None = None
    generator = torch.Generator()  # one for all: to make one takes longer than to use it
    for start in range(0, len(places), BLOCK):
        block = places[start : start + BLOCK]
        noise_BD = torch.zeros(BLOCK, model.sample_noise)
        for row, (seed, index) in enumerate(block):
            torch.randn((model.sample_noise,), generator=generator.manual_seed(seed_word(seed, index)), out=noise_BD[row])
        noise_BD[:, :latent] *= temperature
        noise_BD = noise_BD.to(device)
        with torch.inference_mode():
            if classes is None:
                y_B = model.classes(noise_BD) if isinstance(model, Model) else None
            else:
                y_B = torch.zeros(BLOCK, dtype=torch.int64, device=device)
                y_B[: len(block)] = torch.tensor(classes[start : start + BLOCK])
            x_BX = model.sample(noise_BD, y_B)
        out_NX[start : start + BLOCK] = x_BX[: len(block)].cpu().numpy()
        if y_B is not None:
            y_N = np.zeros(len(places), np.int64) if y_N is None else y_N
            y_N[start : start + BLOCK] = y_B[: len(block)].cpu().numpy()
    return out_NX, y_N
