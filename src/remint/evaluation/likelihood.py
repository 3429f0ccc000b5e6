"""Likelihoods of the held-out examples: lower is better.

    images   bits/dim = -log2 p(x) / dims of the discrete example x, whose values are 0 .. levels-1
    tables   nats = -log p(x) of the row x, a density over its standardised numbers and a probability of its categories and
             whole numbers

A flow's density of the dequantised example and a variational autoencoder's bounds are upper bounds of this value, and so
comparable with it (Theis et al., A note on the evaluation of generative models, 2016). A conditional model has p(x | y)
instead, which uses the label: it is not comparable with p(x), and the fingerprint records it.

Shapes: N examples, B block of examples, X the axes of one example, K importance samples, P dims, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.evaluation.context import DEQUANTISATION, IMPORTANCE, EvaluationContext, Measurement, Metric, finite
from remint.models.contract import HasElbo, HasLogProb, standard_normal
from remint.models.whole_numbers import normal_log_mass
from remint.records import Column

DEQUANTISATION_DRAWS = 8
IMPORTANCE_BLOCK = 2**19  # pixels decoded at a time, so that memory does not grow with K

Array = np.ndarray[Any, Any]


def exact(model: HasLogProb, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return ``nll``: the mean over several dequantisations of -log p(x + u)."""
    draws = DEQUANTISATION_DRAWS if model.density_noise else 1

    def summed(number: int, x_BX: Tensor, y_B: Tensor | None) -> Tensor:
        sum_B = torch.zeros(len(x_BX), dtype=torch.float64)
        for draw in range(draws):
            shape = (len(x_BX), model.density_noise)
            noise_BN = standard_normal(shape, context.settings.seed, DEQUANTISATION, draw, number)
            sum_B += model.log_prob(x_BX, noise_BN, y_B).double()
        return sum_B

    how = {"dequantisation": "uniform", "dequantisation_draws": draws} if model.density_noise else {"dequantisation": "none"}
    return {"nll": _measurement("nll", context.over_held_out(summed) / draws, context, **how, **_conditioning(model))}


def bounds(model: HasElbo, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return ``elbo`` and ``iwae`` from the same K importance weights w_k: -mean log w_k and -log mean w_k."""
    samples = context.settings.importance_samples
    nats_N2 = context.over_held_out(lambda number, x_BX, y_B: _bounds_of_block(model, number, x_BX, y_B, context))
    return {
        name: _measurement(name, nats_N, context, importance_samples=samples, **_conditioning(model))
        for name, nats_N in zip(("elbo", "iwae"), nats_N2.unbind(1), strict=True)
    }


def _bounds_of_block(model: HasElbo, number: int, x_BX: Tensor, y_B: Tensor | None, context: EvaluationContext) -> Tensor:
    """Return ELBO and IWAE-K of a block in nats, (B, 2) float64, computed from a part of the K samples at a time."""
    total, seed = context.settings.importance_samples, context.settings.seed
    part = max(1, IMPORTANCE_BLOCK // x_BX.numel())
    sum_B = torch.zeros(len(x_BX), dtype=torch.float64)
    log_sum_B = torch.full((len(x_BX),), -math.inf, dtype=torch.float64)
    for start in range(0, total, part):
        shape = (len(x_BX), model.latent_noise)
        draws = range(start, min(start + part, total))
        noise_KBN = torch.stack([standard_normal(shape, seed, IMPORTANCE, draw, number) for draw in draws])
        log_w_KB = model.elbo(x_BX, noise_KBN, y_B).double()
        sum_B += log_w_KB.sum(dim=0)
        log_sum_B = torch.logaddexp(log_sum_B, log_w_KB.logsumexp(dim=0))
    return torch.stack([sum_B / total, log_sum_B - math.log(total)], dim=1)


def independent_baseline(context: EvaluationContext) -> Measurement:
    """Return the likelihood of the independent-pixel baseline, a model with independent dimensions.

    Pixels and categories: an independent categorical distribution for each, counted on the training split with one count
    added to each level (Laplace's rule). Numeric columns: an independent normal distribution with the training split's
    mean and variance, for whole numbers integrated over each. A missing value contributes 0.
    """
    spec, train = context.dataset.spec, context.dataset.train
    if spec.is_table:
        columns = zip(spec.columns, np.array(train.x_NX, dtype=np.float64).T, strict=True)
        laws = [_normal(column_N, column) if column.numeric else _categorical(column_N, column) for column, column_N in columns]
        held_DN = np.array(context.dataset.held_out.x_NX, dtype=np.float64).T
        nats_N = np.array(sum(law(x_N) for law, x_N in zip(laws, held_DN, strict=True)))
        return Measurement.over_examples(nats_N, context)
    levels, dims = spec.levels, spec.dims
    pixel_P = np.arange(dims) * levels
    counts_PL = np.ones(dims * levels)
    for at in range(0, len(train), 1024):
        x_BP = train.x_NX[at : at + 1024].reshape(-1, dims)
        counts_PL += np.bincount((pixel_P + x_BP).ravel(), minlength=dims * levels)
    bits_PL = np.log2(len(train) + levels) - np.log2(counts_PL)
    bits_N = context.over_held_out(lambda _, x_BX, __: torch.from_numpy(bits_PL[pixel_P + x_BX.flatten(1).numpy()].mean(axis=1)))
    return Measurement.over_examples(bits_N.numpy(), context)


def _normal(train_N: Array, column: Column) -> Callable[[Array], Array]:
    """Return -log density of a normal distribution fitted to the observed values; its deviation is at least 1e-3.

    Of whole numbers: -log probability.
    """
    mean, scale = np.nanmean(train_N), max(float(np.nanstd(train_N)), 1e-3)
    half = torch.tensor(0.5 / column.scale if column.whole else 0.0, dtype=torch.float64)

    def law(x_B: Array) -> Array:
        log_B = normal_log_mass(torch.from_numpy(x_B - mean), torch.tensor(math.log(scale), dtype=torch.float64), half)
        nats_B: Array = np.nan_to_num(-log_B.numpy())
        return nats_B

    return law


def _categorical(train_N: Array, column: Column) -> Callable[[Array], Array]:
    """Return -log probability of a category, from counts; 0 for a missing value."""
    counts_L = np.ones(len(column.categories)) + np.bincount(_places(train_N), minlength=len(column.categories) + 1)[1:]
    nats_L = np.concatenate([[0.0], math.log(counts_L.sum()) - np.log(counts_L)])

    def law(x_B: Array) -> Array:
        nats_B: Array = nats_L[_places(x_B)]
        return nats_B

    return law


def _places(x_N: Array) -> Array:
    """Return the index of a category plus one; 0 if the value is missing."""
    place_N: Array = np.nan_to_num(x_N + 1).astype(np.int64)
    return place_N


def _conditioning(model: object) -> dict[str, str]:
    """Return the fingerprint entry of a conditional model's likelihood."""
    return {"given": "class"} if getattr(model, "conditional", False) else {}


def _measurement(metric: str, log_p_N: Tensor, context: EvaluationContext, **how: Any) -> Measurement:
    """Return the measurement of a likelihood in the data's unit, from the log-likelihood of each example in nats."""
    values_N = finite((-log_p_N / context.dataset.spec.nats_per_unit).numpy(), metric)
    y_N = context.dataset.held_out.y_N
    return Measurement.over_examples(values_N, context, None if y_N is None else np.array(y_N), **how)


_CONTEXT = {"factorised": independent_baseline}
METRICS = {"nll": Metric(exact, _CONTEXT), "elbo": Metric(bounds, _CONTEXT), "iwae": Metric(bounds, _CONTEXT)}
