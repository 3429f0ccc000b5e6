"""Anomaly scores against closed forms, in float64: a linear VAE, frequencies counted by hand, distances by brute force."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from remint.models import scores
from remint.models.contract import standard_normal
from remint.models.row_likelihoods import RowFeatures
from remint.models.scores import Scorer
from tests.support.models_cases import CASES, MIXED, examples
from tests.unit.test_models_linear_vae import SPEC, D, linear_vae, pca


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_likelihood_of_an_exact_vae_is_that_of_its_gaussian() -> None:
    model = pca(2)
    scorer = Scorer(linear_vae(model, list(range(D))), SPEC, {})
    (log_p,) = scorer.log_joint(model.x_ND, noise_of(scorer))
    torch.testing.assert_close(log_p, model.log_prob(model.x_ND), rtol=0, atol=1e-9)


def test_the_likelihood_of_a_conditional_model_is_summed_over_its_classes() -> None:
    model, means = pca(2), 2 * standard_normal((3, D), 7).double()
    share, vae = torch.tensor([0.5, 0.3, 0.2]), linear_vae(model, list(range(D)), classes=means)
    vae.labels.share_K.copy_(share)
    scorer = Scorer(vae, SPEC, {})
    joint = torch.stack(
        [model._replace(mean_D=torch.zeros(D)).log_prob(model.x_ND - means[y]) + share[y].log() for y in range(3)]
    )
    (found,) = scorer.parts(model.x_ND, noise_of(scorer), ["likelihood"]).T
    torch.testing.assert_close(found, -joint.logsumexp(0), rtol=0, atol=1e-9)


def test_the_latent_distance_and_the_reconstruction_of_a_linear_vae() -> None:
    model = pca(2)
    vae = linear_vae(model, list(range(D)))
    z = vae.encode(model.x_ND)
    scorer = Scorer(vae, SPEC, scores.latent_statistics(z))
    latent, reconstruction = scorer.parts(model.x_ND, noise_of(scorer), ["latent", "reconstruction"]).T
    covariance = np.cov(z.numpy().T, bias=True) + scores.RIDGE * np.eye(2)
    centred = z.numpy() - z.numpy().mean(0)
    expected = np.sqrt(np.einsum("nz,zy,ny->n", centred, np.linalg.inv(covariance), centred))
    np.testing.assert_allclose(latent.numpy(), expected, rtol=1e-10)
    again = (z @ model.weight_DZ.T + model.mean_D).float().double()  # rows are single
    torch.testing.assert_close(reconstruction, (again - model.x_ND).square().sum(1), rtol=1e-9, atol=0)


def test_the_complexity_of_an_image_is_its_length_under_the_level_frequencies() -> None:
    x = torch.tensor([[0, 0, 1, 2], [0, 0, 0, 0]], dtype=torch.uint8).view(2, 1, 2, 2)
    share = scores.level_shares(x, 3)
    torch.testing.assert_close(share, torch.tensor([6.5, 1.5, 1.5]) / 9.5)
    case = CASES["vae"]
    scorer = Scorer(case.build(), case.spec, {"level_share_L": share})
    expected = [-(2 * math.log(6.5 / 9.5) + 2 * math.log(1.5 / 9.5)), -4 * math.log(6.5 / 9.5)]
    torch.testing.assert_close(scorer.complexity(x), torch.tensor(expected))


@pytest.mark.parametrize("name", ["vae-table", "vae"])
def test_the_distance_to_the_nearest_examples_is_that_of_brute_force(name: str) -> None:
    case = CASES[name]
    near, x = examples(case.spec, 40, seed=2), examples(case.spec, 20, seed=3)
    scorer = Scorer(case.build(), case.spec, {"near_RX": near})
    features = [
        (RowFeatures(MIXED)(each.double()) if case.spec is MIXED else each.flatten(1).double() * 2 / (case.spec.levels - 1) - 1)
        for each in (x, near)
    ]
    distance = np.linalg.norm(features[0].numpy()[:, None] - features[1].numpy()[None], axis=2)
    expected = np.sort(distance, axis=1)[:, : scores.NEIGHBOURS].mean(1)
    np.testing.assert_allclose(scorer.to_nearest(x, "near_RX").numpy(), expected, rtol=1e-10, atol=1e-12)
    copies = Scorer(case.build(), case.spec, {"near_RX": x[:1].expand(9, *x.shape[1:])})
    assert float(copies.to_nearest(x[:1], "near_RX")) == 0.0


def test_the_default_is_the_sum_of_two_standardised_scores() -> None:
    case = CASES["vae"]
    scorer = Scorer(case.build(), case.spec, {})
    part = {name: standard_normal((50,), name).double() * 3 + 7 for name in scorer.part_names}
    scorer.reference["statistics_2S"] = scores.statistics(part)
    standard = {name: (each - each.mean()) / each.std(correction=0) for name, each in part.items()}
    torch.testing.assert_close(scorer.score("combined", part), standard["neighbours"] + standard["relative"])
    torch.testing.assert_close(scorer.score("typicality", part), standard["likelihood"].abs())
    assert scorer.score("neighbours", part) is part["neighbours"]


def test_a_constant_score_has_a_deviation_of_one() -> None:
    assert scores.statistics({"a": torch.full((9,), 4.0)}).tolist() == [[4.0], [1.0]]


def noise_of(scorer: Scorer) -> torch.Tensor:
    draws, size = scorer.noise_shape
    return standard_normal((draws, 300, size), 1).double()
