"""The score that chooses the best step: bits per dimension on the validation split, with noise that never changes.

Shapes: N examples, B examples of one chunk, K draws of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from remint.models.contract import HasElbo, HasLogProb, Model, standard_normal
from remint.records import DataSpec
from remint.training.randomness import SCORE
from remint.training.world import World

DRAWS = 4  # of noise, for each example
CHUNK = 256  # examples; the same at every world size, so that the score is too

Score = Callable[[Model], float]


def scorer(model: Model, x_NCHW: Tensor, spec: DataSpec, seed: int, world: World) -> Score | None:
    """A function that scores a model of this kind, in bits per dimension, lower is better; None: it has no likelihood.

    Minus the ELBO, or minus the log density of the dequantised example, a mean over the examples and over
    DRAWS fixed draws. ``x_NCHW``: uint8, on the device. The ranks share the chunks, and all must call it.
    """
    if isinstance(model, HasElbo):
        noise_size = model.latent_noise
    elif isinstance(model, HasLogProb):
        noise_size = model.density_noise
    else:
        return None

    chunks = torch.split(x_NCHW, CHUNK)
    noise = [standard_normal((DRAWS, len(chunk), noise_size), seed, SCORE, i).to(x_NCHW.device) for i, chunk in enumerate(chunks)]

    @torch.no_grad()
    def score(judged: Model) -> float:
        nats = torch.zeros(len(chunks), dtype=torch.float64)
        for i in range(world.rank, len(chunks), world.size):
            nats[i] = _log_likelihood(judged, chunks[i].float(), noise[i])
        # Each chunk is one rank's and zero elsewhere: the sum over ranks is exact.
        return -float(world.gather(nats).sum(0).sum()) / (DRAWS * len(x_NCHW) * spec.dims * math.log(2))

    return score


def _log_likelihood(model: Model, x_BCHW: Tensor, noise_KBN: Tensor) -> float:
    """Sum over examples and draws, nats."""
    if isinstance(model, HasElbo):
        return float(model.elbo(x_BCHW, noise_KBN).double().sum())
    assert isinstance(model, HasLogProb)
    return sum(float(model.log_prob(x_BCHW, noise_BN).double().sum()) for noise_BN in noise_KBN)
