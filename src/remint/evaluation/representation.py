"""Linear probe of a model's latents: how much of the labels a linear classifier reads from them.

    probe_latent   from the latents
    probe_pca      from as many principal components of the values
    probe_raw      from the values themselves: pixels in levels; standardised numbers and one-hot categories

The probe is a multinomial logistic regression on standardised features, fitted to training examples and scored by the share of
held-out examples whose class it predicts (Alain & Bengio, Understanding intermediate layers using linear classifier probes,
2016). All three use the same examples. Latents are worth their name where probe_latent is above probe_pca.

A conditional model has no probe: its latents are given the class. Neither has a model that encodes by optimisation, which
takes too long for a report.

Shapes: N training examples, M held-out examples, D features, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from remint.evaluation.context import BLOCK, PROBE, EvaluationContext, Measurement
from remint.evaluation.neighbours import coordinates
from remint.models.contract import HasLatent, Model
from remint.settings.catalogue import Facts

NAMES = ("probe_latent", "probe_pca", "probe_raw")
FACTS = Facts("sample", better="higher")
TRAINED, TESTED = 1_000, 1_000  # most training and held-out examples
LEAST = 20  # examples on each side
ROUNDS = 100  # of L-BFGS
PENALTY = 1.0  # of the squared weights, as scikit-learn's C = 1


def can_probe(model: object, context: EvaluationContext) -> bool:
    """Return whether the model has latents to probe, and the data labels to read from them."""
    dataset = context.dataset
    labelled = dataset.train.y_N is not None and dataset.held_out.y_N is not None and dataset.spec.classes > 1
    return (
        labelled
        and min(len(dataset.train), len(context.judged)) >= LEAST
        and isinstance(model, HasLatent)
        and isinstance(model, Model)
        and not (model.conditional or model.encodes_by_search)
    )


def probes(model: object, context: EvaluationContext) -> dict[str, Measurement]:
    """Return the probe's accuracy by name: the mean over held-out examples, 1 where the class is predicted, else 0."""
    assert isinstance(model, HasLatent)
    dataset, seed = context.dataset, context.settings.seed
    chosen_N = np.sort(np.random.default_rng([PROBE, seed]).permutation(len(dataset.train))[:TRAINED])
    chosen_M = context.judged[np.sort(np.random.default_rng([PROBE, seed]).permutation(len(context.judged))[:TESTED])]
    x_NX, x_MX = np.array(dataset.train.x_NX[chosen_N]), np.array(dataset.held_out.x_NX[chosen_M])
    assert dataset.train.y_N is not None and dataset.held_out.y_N is not None
    y_N, y_M = (
        torch.from_numpy(np.array(y[chosen])) for y, chosen in ((dataset.train.y_N, chosen_N), (dataset.held_out.y_N, chosen_M))
    )

    def latents(x: np.ndarray) -> Tensor:
        return context.world.blocks(
            len(x), BLOCK, lambda number: model.encode(torch.from_numpy(x[number * BLOCK :][:BLOCK]))
        ).double()

    raw_ND, raw_MD = coordinates(x_NX, dataset.spec), coordinates(x_MX, dataset.spec)
    features = {
        "probe_latent": (latents(x_NX), latents(x_MX)),
        "probe_pca": principal_components(raw_ND, raw_MD, model.latent_size),
        "probe_raw": (raw_ND, raw_MD),
    }
    return {
        name: Measurement.over_examples(
            (predict(train_ND, y_N, test_MD, dataset.spec.classes) == y_M).double().numpy(),
            context,
            probe="logistic regression",
            trained_on=len(x_NX),
            numbers=train_ND.shape[1],
        )
        for name, (train_ND, test_MD) in features.items()
    }


def principal_components(train_ND: Tensor, test_MD: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the first components of both, by the directions of the training examples with the largest variance."""
    mean_D = train_ND.mean(0)
    directions = torch.linalg.svd(train_ND - mean_D, full_matrices=False).Vh[:most]
    return (train_ND - mean_D) @ directions.T, (test_MD - mean_D) @ directions.T


def predict(train_ND: Tensor, y_N: Tensor, test_MD: Tensor, classes: int) -> Tensor:
    """Return the class of each test example, int64 (M,), by a logistic regression fitted to the training examples."""
    mean_D, scale_D = train_ND.mean(0), train_ND.std(0, correction=0)
    scale_D = torch.where(scale_D > 0, scale_D, 1.0)
    train_ND, test_MD = (train_ND - mean_D) / scale_D, (test_MD - mean_D) / scale_D
    weight_KD = torch.zeros(classes, train_ND.shape[1], dtype=torch.float64, requires_grad=True)
    bias_K = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_KD, bias_K], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(train_ND @ weight_KD.T + bias_K, y_N) + PENALTY * weight_KD.square().sum() / (2 * len(y_N))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return (test_MD @ weight_KD.T + bias_K).argmax(1).detach()
