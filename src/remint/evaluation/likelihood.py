"""Likelihoods of the held-out examples, in bits per dimension: lower is better.

    bits/dim = -log2 p(x) / dims

of the discrete example x, whose values are 0 .. levels-1. A flow's density of the dequantised example and a
variational autoencoder's bounds are both bounds from above on it, and so comparable with it (Theis et al., A note
on the evaluation of generative models, 2016).

Shapes: N examples, B block of examples, C channels, H height, W width, K importance samples, P dims, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.evaluation.bench import DEQUANTISATION, IMPORTANCE, Bench, Measurement, finite
from remint.models.contract import HasElbo, HasLogProb, standard_normal

DEQUANTISATION_DRAWS = 8
IMPORTANCE_BLOCK = 2**19  # pixels decoded at a time, so that K does not cost memory

Array = np.ndarray[Any, Any]


def exact(model: HasLogProb, bench: Bench) -> Mapping[str, Measurement]:
    """``nll``: the mean over several dequantisations of -log p(x + u)."""
    sums = []
    for number, x_BCHW in bench.held_out_blocks():
        sum_B = torch.zeros(len(x_BCHW), dtype=torch.float64)
        for draw in range(DEQUANTISATION_DRAWS):
            shape = (len(x_BCHW), model.density_noise)
            noise_BN = standard_normal(shape, bench.settings.seed, DEQUANTISATION, draw, number)
            sum_B += model.log_prob(x_BCHW, noise_BN).double()
        sums.append(sum_B)
    bits_N = _bits_per_dim(torch.cat(sums) / DEQUANTISATION_DRAWS, bench, "nll")
    return {"nll": Measurement.over_examples(bits_N, bench, dequantisation="uniform", dequantisation_draws=DEQUANTISATION_DRAWS)}


def bounds(model: HasElbo, bench: Bench) -> Mapping[str, Measurement]:
    """``elbo`` and ``iwae`` from the same K importance weights w_k: -mean log w_k and -log mean w_k."""
    samples = bench.settings.importance_samples
    pairs = [_bounds_of_block(model, x_BCHW, number, bench) for number, x_BCHW in bench.held_out_blocks()]
    return {
        name: Measurement.over_examples(_bits_per_dim(torch.cat(nats), bench, name), bench, importance_samples=samples)
        for name, nats in zip(("elbo", "iwae"), zip(*pairs, strict=True), strict=True)
    }


def _bounds_of_block(model: HasElbo, x_BCHW: Tensor, number: int, bench: Bench) -> tuple[Tensor, Tensor]:
    """ELBO and IWAE-K of a block in nats, each (B,) float64; K is walked through a part at a time."""
    total, seed = bench.settings.importance_samples, bench.settings.seed
    part = max(1, IMPORTANCE_BLOCK // x_BCHW.numel())
    sum_B = torch.zeros(len(x_BCHW), dtype=torch.float64)
    log_sum_B = torch.full((len(x_BCHW),), -math.inf, dtype=torch.float64)
    for start in range(0, total, part):
        shape = (len(x_BCHW), model.latent_noise)
        draws = range(start, min(start + part, total))
        noise_KBN = torch.stack([standard_normal(shape, seed, IMPORTANCE, draw, number) for draw in draws])
        log_w_KB = model.elbo(x_BCHW, noise_KBN).double()
        sum_B += log_w_KB.sum(dim=0)
        log_sum_B = torch.logaddexp(log_sum_B, log_w_KB.logsumexp(dim=0))
    return sum_B / total, log_sum_B - math.log(total)


def factorised(bench: Bench) -> Measurement:
    """What a model that has learnt nothing of how pixels hang together reaches.

    An independent categorical distribution for each pixel, counted on the training split with one count added to each
    level (Laplace's rule).
    """
    levels, dims = bench.dataset.spec.levels, bench.dataset.spec.dims
    pixel_P = np.arange(dims) * levels
    counts_PL = np.ones(dims * levels)
    train_NCHW = bench.dataset.train.x_NX
    for at in range(0, len(train_NCHW), 1024):
        x_BP = train_NCHW[at : at + 1024].reshape(-1, dims)
        counts_PL += np.bincount((pixel_P + x_BP).ravel(), minlength=dims * levels)
    bits_PL = np.log2(len(train_NCHW) + levels) - np.log2(counts_PL)
    bits_N = np.concatenate([bits_PL[pixel_P + x_BCHW.flatten(1).numpy()].mean(axis=1) for _, x_BCHW in bench.held_out_blocks()])
    return Measurement.over_examples(bits_N, bench)


def _bits_per_dim(nats_N: Tensor, bench: Bench, metric: str) -> Array:
    bits_N: Array = (-nats_N / (bench.dataset.spec.dims * math.log(2.0))).numpy()
    return finite(bits_N, metric)
