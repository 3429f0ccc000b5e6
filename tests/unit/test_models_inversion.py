"""Latents by optimisation against a closed form, and their independence of other examples and of the caller's mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from remint.models import inversion
from remint.models.contract import standard_normal
from remint.models.gan import Generator
from remint.models.inversion import PRIOR, invert
from tests.support.models_cases import CASES, Case, examples

GANS = [name for name, case in CASES.items() if case.family == "gan"]


def test_the_latent_of_a_linear_generator_is_the_ridge_solution() -> None:
    """z = argmin |A z + b - x|^2 / S + PRIOR |z|^2 / Z solves (A'A / S + PRIOR / Z) z = A' (x - b) / S."""
    numbers, latent = 7, 3
    a_SZ, b_S, x_BS = (standard_normal(shape, "linear").double() for shape in ((numbers, latent), (numbers,), (9, numbers)))
    z_BZ = invert(lambda z_RZ, _: z_RZ @ a_SZ.T + b_S, x_BS, None, latent)
    left_ZZ = a_SZ.T @ a_SZ / numbers + PRIOR / latent * torch.eye(latent)
    expected_ZB = torch.linalg.solve(left_ZZ, a_SZ.T @ (x_BS - b_S).T / numbers)
    torch.testing.assert_close(z_BZ, expected_ZB.T, rtol=0.0, atol=2e-3)


def test_the_search_leaves_local_minima() -> None:
    """The distance to a point of the curve (z, sin 4z) has several; from the nearest draws the search finds the lowest."""

    def generate(z_R1: Tensor, _: Tensor | None) -> Tensor:
        return torch.cat([z_R1, (4 * z_R1).sin()], dim=1)

    z_B1 = torch.linspace(-1.8, 1.8, 50, dtype=torch.float64).unsqueeze(1)  # where there are draws on both sides
    torch.testing.assert_close(invert(generate, generate(z_B1, None), None, 1), z_B1, rtol=0.0, atol=5e-3)


@pytest.mark.parametrize("name", GANS)
def test_a_generators_own_example_is_found_again(name: str) -> None:
    model, y_B = build(CASES[name]), CASES[name].y(12)
    x_BX = model.decode(standard_normal((12, model.latent_size), 3).double(), y_B)
    wanted_BS = model.space.encode(x_BX.double())
    found_BS = model.space.encode(model.decode(model.encode(x_BX, y_B), y_B).double())
    usual = (wanted_BS - wanted_BS.roll(1, 0)).square().mean()
    assert (found_BS - wanted_BS).square().mean() < 0.05 * usual


@pytest.mark.parametrize("name", GANS)
def test_a_latent_does_not_depend_on_mode_order_neighbours_or_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    model, x_BX, y_B = build(case), examples(case.spec, 6), case.y(6)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        z_BZ = model.encode(x_BX, y_B)
    assert not z_BZ.requires_grad and torch.equal(torch.random.get_rng_state(), state)
    with torch.inference_mode():
        assert torch.equal(model.encode(x_BX, y_B), z_BZ)
    order = torch.tensor([4, 0, 3])
    picked_B = None if y_B is None else y_B[order]
    torch.testing.assert_close(model.encode(x_BX[order], picked_B), z_BZ[order], rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(inversion, "NUMBERS", 1)  # one example at a time
    torch.testing.assert_close(model.encode(x_BX, y_B), z_BZ, rtol=1e-6, atol=1e-6)
    filled = torch.tensor([2, 5, 2, 2, 2])  # as a block is filled up
    filled_B = None if y_B is None else y_B[filled]
    torch.testing.assert_close(model.encode(x_BX[filled], filled_B), z_BZ[filled], rtol=1e-6, atol=1e-6)
    assert model.encode(x_BX[:0], None if y_B is None else y_B[:0]).shape == (0, model.latent_size)


def build(case: Case) -> Generator:
    model = case.build(spread=0.5).requires_grad_(False)
    assert isinstance(model, Generator)
    return model
