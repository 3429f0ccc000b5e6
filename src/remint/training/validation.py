"""Validation score, which selects the best step: bits per dimension of images, or nats per row, on the validation split.

Its examples and its noise are fixed, so two scores differ only because of the weights.

Shapes: N examples, B examples of one chunk, K draws of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.data.sampler import spaced_indices
from remint.distributed.world import World
from remint.models.contract import HasElbo, HasLogProb, Model, standard_normal
from remint.records import DataSpec
from remint.settings.recipe import TrainingSettings
from remint.training.randomness import SCORE

DRAWS = 4  # draws of noise for each example
CHUNK = 256  # examples at a time; the same at every world size, so that the score is too

Score = Callable[[Model], float]


def scorer(model: Model, x_NX: Any, y_N: Any, spec: DataSpec, settings: TrainingSettings, world: World) -> Score | None:
    """Return a function that scores a model of this kind, in the data's unit, lower is better; None: it has no likelihood.

    The score is minus the ELBO, or minus the log density of the dequantised example, a mean over DRAWS fixed draws and over
    ``validation_examples`` examples, evenly spaced, or all. ``x_NX``, ``y_N``: the validation split, as arrays on the host. The
    ranks share the chunks, and all must call the function.
    """
    if isinstance(model, HasElbo):
        noise_size = model.latent_noise
    elif isinstance(model, HasLogProb):
        noise_size = model.density_noise
    else:
        return None

    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    chosen_N = spaced_indices(len(x_NX), settings.validation_examples)
    count = math.ceil(len(chosen_N) / CHUNK)

    def chunk(values_N: Any, number: int) -> Tensor:
        return torch.from_numpy(np.array(values_N[chosen_N[number * CHUNK : (number + 1) * CHUNK]])).to(world.device)

    @torch.no_grad()
    def score(judged: Model) -> float:
        nats = torch.zeros(count, dtype=torch.float64)
        for i in range(world.rank, count, world.size):
            x_BX = chunk(x_NX, i).to(dtype)
            # Drawn anew each time: the noise of a large split may not fit in memory.
            noise_KBN = standard_normal((DRAWS, len(x_BX), noise_size), settings.seed, SCORE, i).to(world.device, dtype)
            nats[i] = _log_likelihood(judged, x_BX, noise_KBN, None if y_N is None else chunk(y_N, i))
        # Each chunk is computed on one rank and zero on the others: the sum over ranks is exact.
        return -float(world.gather(nats).sum(0).sum()) / (DRAWS * len(chosen_N) * spec.nats_per_unit)

    return score


def _log_likelihood(model: Model, x_BX: Tensor, noise_KBN: Tensor, y_B: Tensor | None) -> float:
    """Return the sum over examples and draws, in nats."""
    if isinstance(model, HasElbo):
        return float(model.elbo(x_BX, noise_KBN, y_B).double().sum())
    assert isinstance(model, HasLogProb)
    return sum(float(model.log_prob(x_BX, noise_BN, y_B).double().sum()) for noise_BN in noise_KBN)
