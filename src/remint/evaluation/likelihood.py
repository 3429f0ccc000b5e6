"""Likelihoods of the held-out examples: lower is better.

    images   bits/dim = -log2 p(x) / dims of the discrete example x, whose values are 0 .. levels-1
    tables   nats = -log p(x) of the row x, a density over its standardised numbers and a probability of its categories and
             whole numbers

A flow's density of the dequantised example and a variational autoencoder's bounds are upper bounds of this value, and so
comparable with it (Theis et al., A note on the evaluation of generative models, 2016). A conditional model has p(x | y)
instead, which uses the label: it is not comparable with p(x), and the fingerprint records it.

Shapes: N examples, B block of examples or a part of one, X the axes of one example, K samples of its noise, P dims, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.evaluation.context import DEQUANTISATION, IMPORTANCE, EvaluationContext, Measurement, Metric, finite
from remint.models.contract import HasElbo, HasLogProb, standard_normal
from remint.models.whole_numbers import normal_log_mass
from remint.records import Column

FIRST_SAMPLES = 2  # of each example; they decide how many follow
NOISE_SHARE = 0.02  # largest part that this sampling may add to the variance of the mean over examples
MOST_SAMPLES = 64  # of each example
RULE = {"noise_share": NOISE_SHARE, "most_samples": MOST_SAMPLES}  # of the fingerprint, without the number that it gave
SAMPLE_BLOCK = 2**19  # numbers of examples times samples at a time, so that memory does not grow with either
COUNT_BLOCK = 2**23  # numbers of training examples at a time

Array = np.ndarray[Any, Any]
OfBlock = Callable[[int, Tensor, Tensor | None, range], Tensor]  # from a block's number, x_BX, y_B and samples, to sums_B3


def exact(model: HasLogProb, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return ``nll``: the mean over dequantisations u of -log p(x + u)."""

    def of_block(number: int, x_BX: Tensor, y_B: Tensor | None, draws: range) -> Tensor:
        shape, seed = (len(x_BX), model.density_noise), context.settings.seed
        noises = (standard_normal(shape, seed, DEQUANTISATION, draw, number) for draw in draws)
        return reduce(_merge, (_summed(model.log_prob(x_BX, noise_BN, y_B).unsqueeze(0)) for noise_BN in noises))

    if not model.density_noise:  # nothing is discrete
        log_p_N = _sums(of_block, range(1), context)[:, 0]
        return {"nll": _measurement("nll", log_p_N, context, 0, dequantisation="none", **_conditioning(model))}
    sums_N3, count = _enough(of_block, _sums(of_block, range(FIRST_SAMPLES), context), FIRST_SAMPLES, "nll", context)
    how = {"dequantisation": "uniform", **RULE, **_conditioning(model)}
    return {"nll": _measurement("nll", sums_N3[:, 0] / count, context, count, **how)}


def bounds(model: HasElbo, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return ``elbo``, -mean log w_k, and if it is asked for ``iwae``, -log mean w_k, from importance weights w_k.

    IWAE-K is another bound for each K, and so has the K of the settings. The ELBO is the same bound for any number of
    samples: it has as many as its noise needs, or IWAE's if these are more.
    """

    def of_block(number: int, x_BX: Tensor, y_B: Tensor | None, draws: range) -> Tensor:
        shape, seed = (len(x_BX), model.latent_noise), context.settings.seed
        dims = max(1, x_BX[:1].numel())
        wide = min(MOST_SAMPLES, max(1, SAMPLE_BLOCK // dims))
        found = []
        for start in range(draws.start, draws.stop, wide):
            some = draws[start - draws.start :][:wide]
            noise_KBN = torch.stack([standard_normal(shape, seed, IMPORTANCE, draw, number) for draw in some])
            size = max(1, SAMPLE_BLOCK // (dims * len(some)))  # all samples of an example at once: the encoder sees it once
            rows = [slice(at, at + size) for at in range(0, len(x_BX), size)]
            parts = [model.elbo(x_BX[each], noise_KBN[:, each], None if y_B is None else y_B[each]) for each in rows]
            found.append(_summed(torch.cat(parts, dim=1)))
        return reduce(_merge, found)

    asked, samples = "iwae" in context.metrics, context.settings.importance_samples
    first = samples if asked else FIRST_SAMPLES
    found: dict[str, Measurement] = {}
    sums_N3 = _sums(of_block, range(first), context)
    if asked:
        how = {"importance_samples": samples, **_conditioning(model)}
        found["iwae"] = _measurement("iwae", sums_N3[:, 2] - math.log(samples), context, 0, **how)
    if "elbo" in context.metrics:
        sums_N3, count = _enough(of_block, sums_N3, first, "elbo", context)
        found["elbo"] = _measurement("elbo", sums_N3[:, 0] / count, context, count, **RULE, **_conditioning(model))
    return found


def _enough(of_block: OfBlock, sums_N3: Tensor, first: int, metric: str, context: EvaluationContext) -> tuple[Tensor, int]:
    """Return the sums over enough samples of each example, and their number K. ``sums_N3``: over the ``first`` of them.

    With a variance of w within the samples of one example and of b between examples, the mean over examples has a variance
    of (b + w / K) / N. K is the least power of two with w / K <= NOISE_SHARE b, at most MOST_SAMPLES and at least ``first``.
    The first samples decide it: a function of model, data, seed and settings. A power of two, because the last bits of w
    and b may differ between machines.
    """
    finite((sums_N3[:, 0] / first).numpy(), metric)
    count = max(first, _needed(sums_N3, first))
    if count > first:
        sums_N3 = _merge(sums_N3, _sums(of_block, range(first, count), context))
    return sums_N3, count


def _needed(sums_N3: Tensor, count: int) -> int:
    """Return the number of samples that the rule asks for, from the sums over ``count`` of them."""
    if count < 2 or len(sums_N3) < 2:
        return MOST_SAMPLES  # nothing shows the two variances
    mean_N = sums_N3[:, 0] / count
    within = float((sums_N3[:, 1] - count * mean_N.square()).clamp(min=0.0).mean()) / (count - 1)
    between = float(mean_N.var()) - within / count
    if within >= MOST_SAMPLES * NOISE_SHARE * between:
        return MOST_SAMPLES if within > 0.0 else 1
    return 2 ** max(0, math.ceil(math.log2(within / (NOISE_SHARE * between)))) if within > 0.0 else 1


def _sums(of_block: OfBlock, draws: range, context: EvaluationContext) -> Tensor:
    """Return sum, sum of squares and log of the sum of exponentials over the samples of each example, (N, 3) float64."""
    return context.over_held_out(lambda number, x_BX, y_B: of_block(number, x_BX, y_B, draws))


def _summed(log_p_KB: Tensor) -> Tensor:
    log_p_KB = log_p_KB.double()
    return torch.stack([log_p_KB.sum(dim=0), log_p_KB.square().sum(dim=0), log_p_KB.logsumexp(dim=0)], dim=1)


def _merge(a_N3: Tensor, b_N3: Tensor) -> Tensor:
    return torch.cat([a_N3[:, :2] + b_N3[:, :2], torch.logaddexp(a_N3[:, 2:], b_N3[:, 2:])], dim=1)


def independent_baseline(context: EvaluationContext) -> Measurement:
    """Return the likelihood of the independent-pixel baseline, a model with independent dimensions.

    Pixels and categories: an independent categorical distribution for each, counted on the training split with one count
    added to each level (Laplace's rule). Numeric columns: an independent normal distribution with the training split's
    mean and variance, for whole numbers integrated over each. A missing value contributes 0.
    """
    spec, train = context.dataset.spec, context.dataset.train
    if spec.is_table:
        columns = ((column, np.array(train.x_NX[:, d], dtype=np.float64)) for d, column in enumerate(spec.columns))
        laws = [_normal(column_N, column) if column.numeric else _categorical(column_N, column) for column, column_N in columns]
        held_DN = np.array(context.dataset.held_out.x_NX[context.judged], dtype=np.float64).T
        nats_N = np.array(sum(law(x_N) for law, x_N in zip(laws, held_DN, strict=True)))
        return Measurement.over_examples(nats_N, context)
    levels, dims = spec.levels, spec.dims
    pixel_P = np.arange(dims) * levels
    counts_PL = np.ones(dims * levels)
    rows = max(1, COUNT_BLOCK // dims)
    for at in range(0, len(train), rows):
        x_BP = train.x_NX[at : at + rows].reshape(-1, dims)
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
    """Return the fingerprint entries of a conditional model's likelihood, and of one that is computed numerically."""
    given = {"given": "class"} if getattr(model, "conditional", False) else {}
    return given | dict(getattr(model, "estimator", {}))


def _measurement(metric: str, log_p_N: Tensor, context: EvaluationContext, repeats: int = 0, **how: Any) -> Measurement:
    """Return the measurement of a likelihood in the data's unit, from the log-likelihood of each example in nats."""
    values_N = finite((-log_p_N / context.dataset.spec.nats_per_unit).numpy(), metric)
    y_N = context.dataset.held_out.y_N
    labels_N = None if y_N is None else np.array(y_N[context.judged])
    return Measurement.over_examples(values_N, context, labels_N, repeats, **how)


_CONTEXT = {"factorised": independent_baseline}
METRICS = {"nll": Metric(exact, _CONTEXT), "elbo": Metric(bounds, _CONTEXT), "iwae": Metric(bounds, _CONTEXT)}
