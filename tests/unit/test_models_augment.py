"""Augmentation: its effect on images and gradients, its noise, and how its probability adapts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from remint.errors import SettingsError
from remint.models.adversarial import CriticPhase, GeneratorPhase
from remint.models.augment import NOISE_NUMBERS, Augment, cutout, jitter_colour, translate
from remint.models.contract import standard_normal
from remint.models.gan import build, phases
from remint.records import DataSpec
from remint.settings.recipe import GanSettings
from tests.support.models_cases import NUMBERS as TABLE
from tests.support.models_cases import make_batch

COLOURS = DataSpec(shape=(3, 8, 16), levels=17)
SETTINGS = GanSettings(latent=3, hidden=8, layers=2, augment=0.6, augment_examples=60)


def image(count: int = 5, seed: int = 0) -> Tensor:
    return standard_normal((count, 3, 8, 16), seed).double()


def an_augment(probability: float, **update: object) -> Augment:
    augment = Augment(SETTINGS.model_copy(update=update), COLOURS).double()
    augment.probability.fill_(probability)
    return augment


def noise(augment: Augment, count: int = 5, seed: int = 0) -> Tensor:
    return standard_normal((count, augment.noise_size), seed, 1).double()


def test_probability_0_and_no_augmentation_are_the_identity() -> None:
    augment = an_augment(0.0)
    assert torch.equal(augment(image(), noise(augment)), image())
    off = an_augment(1.0, augment=0.0)
    assert off.noise_size == 0 and torch.equal(off(image(), torch.zeros(5, 0)), image())


def test_a_probability_is_the_share_of_images_that_are_changed() -> None:
    for kind in NOISE_NUMBERS:
        augment = an_augment(0.3, augmentations=[kind])
        x = image(2000)
        changed = (augment(x, noise(augment, 2000)) != x).flatten(1).any(1).double().mean()
        assert abs(float(changed) - 0.3) < (0.12 if kind == "translation" else 0.04), kind  # one translation in nine is by zero


def test_each_augmented_image_depends_only_on_its_noise() -> None:
    augment = an_augment(0.7)
    whole = augment(image(), noise(augment))
    others = noise(augment, seed=1)
    others[2] = noise(augment)[2]
    assert torch.equal(augment(image(), others)[2], whole[2]) and not torch.equal(augment(image(), others), whole)
    assert torch.equal(augment(image()[2:3], noise(augment)[2:3])[0], whole[2])


def test_the_requested_augmentations_run_in_a_fixed_order() -> None:
    assert an_augment(1.0, augmentations=["cutout", "colour"]).kinds == ["colour", "cutout"]
    assert an_augment(1.0, augmentations=["translation"]).noise_size == 3


def test_translation_moves_by_an_eighth_at_most_and_repeats_the_edge() -> None:
    x = torch.arange(128, dtype=torch.float64).view(1, 1, 8, 16)
    up = translate(x, torch.tensor([[0.0, 0.5]], dtype=torch.float64))
    right = translate(x, torch.tensor([[0.5, 1.0]], dtype=torch.float64))
    rows = torch.tensor([1, 2, 3, 4, 5, 6, 7, 7])
    assert torch.equal(up, x[:, :, rows])
    assert torch.equal(right, x[..., torch.tensor([0, 0, *range(14)])])
    assert torch.equal(translate(x, torch.tensor([[0.5, 0.5]], dtype=torch.float64)), x)


def test_cutout_is_a_square_of_half_the_side_within_the_image() -> None:
    x = torch.ones(2, 1, 8, 8)
    inside = cutout(x, torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
    assert int((inside[0] == 0).sum()) == 16 and bool((inside[0, 0, 2:6, 2:6] == 0).all())
    assert bool((inside[1, 0, :2, 6:] == 0).all()) and int((inside[1] == 0).sum()) == 4


def test_colour_noise_at_the_median_is_the_identity_and_other_noise_follows_the_formula() -> None:
    x = image(1)
    torch.testing.assert_close(jitter_colour(x, torch.full((1, 3), 0.5, dtype=torch.float64)), x)
    brighter = jitter_colour(x, torch.tensor([[1.0, 0.5, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(brighter, x + 0.5)
    grey = jitter_colour(x, torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    flat = jitter_colour(x, torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(flat, x.mean() + (x - x.mean()) / 2)


def test_the_gradient_reaches_the_generator() -> None:
    augment = an_augment(1.0)
    x = standard_normal((2, 3, 4, 4), 2).double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: augment(x, noise(augment, 2)), (x,))
    model = build(SETTINGS, COLOURS).double()
    critic_phase, generator_phase = (phase.double() for phase in phases(model, SETTINGS))
    assert isinstance(critic_phase, CriticPhase)
    critic_phase.augment.probability.fill_(1.0)
    generator_phase(make_batch(generator_phase, COLOURS)).backward()
    assert all(parameter.grad is not None and bool((parameter.grad != 0).any()) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("loss", "real", "fake", "sure"),
    [
        ("relativistic", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0] * 5 + [9.0], 4 / 6),
        ("relativistic", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0] * 4 + [9.0] * 2, 2 / 6),
        ("non_saturating", [1.0, 2.0, 3.0, 4.0, 5.0, -6.0], [9.0] * 6, 4 / 6),
        ("non_saturating", [-1.0, -2.0, -3.0, 4.0, 5.0, -6.0], [-9.0] * 6, -2 / 6),
    ],
)
def test_the_probability_rises_if_the_critic_is_overconfident(
    loss: str, real: list[float], fake: list[float], sure: float
) -> None:
    augment = an_augment(0.5, loss=loss)
    augment.adapt(torch.tensor(real), torch.tensor(fake))
    assert float(augment.probability) == pytest.approx(0.6 if sure > 0.6 else 0.4)


def test_the_probability_stays_within_0_and_1() -> None:
    for start, real in ((0.0, -1.0), (1.0, 1.0)):
        augment = an_augment(start)
        augment.adapt(torch.full((6,), real), torch.zeros(6))
        assert float(augment.probability) == start


def test_phases_share_one_probability_that_a_checkpoint_restores() -> None:
    model = build(SETTINGS, COLOURS).double()
    critic_phase, generator_phase = (phase.double().train() for phase in phases(model, SETTINGS))
    assert isinstance(critic_phase, CriticPhase) and isinstance(generator_phase, GeneratorPhase)
    assert critic_phase.augment is generator_phase.augment
    critic_phase.augment.probability.fill_(0.5)
    critic_phase(make_batch(critic_phase, COLOURS))
    moved = float(critic_phase.augment.probability)
    assert moved in (pytest.approx(0.4), pytest.approx(0.6)) and critic_phase.curves()["augment"] == moved
    assert float(critic_phase.state_dict()["augment.probability"]) == moved
    critic_phase.eval()(make_batch(critic_phase, COLOURS))
    assert float(critic_phase.augment.probability) == moved


def test_both_phases_augment_real_and_drawn_images() -> None:
    model = build(SETTINGS, COLOURS).double()
    for phase in (phase.double().eval() for phase in phases(model, SETTINGS)):
        assert isinstance(phase, CriticPhase | GeneratorPhase)
        batch = make_batch(phase, COLOURS, step=1)
        phase.augment.probability.fill_(0.0)
        plain = phase(batch)
        phase.augment.probability.fill_(1.0)
        assert phase(batch) != plain
        batch.noise_BN = batch.noise_BN.clone()
        noises = torch.split(batch.noise_BN, phase.sizes, dim=1)
        changed = []
        for part in noises[1:3]:  # separate noise of the drawn and of the real images
            before = phase(batch)
            part.neg_()
            changed.append(bool(phase(batch) != before))
        assert changed == [True, True]


def test_augmentation_of_a_table_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"model\.augment needs images"):
        Augment(SETTINGS, TABLE)
