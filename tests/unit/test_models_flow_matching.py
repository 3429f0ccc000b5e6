"""Continuous flow by flow matching: closed forms, the Jacobian, quadrature, and a known entropy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import functional

from remint.errors import SettingsError
from remint.models import flow_matching
from remint.models.contract import Batch, standard_normal
from remint.models.flow_matching import EXACT, FlowMatching
from remint.models.layers import normal_log_density
from remint.records import Column, DataSpec
from remint.settings.recipe import FlowMatchingSettings
from tests.support.models_cases import IMAGE, NUMBERS, PAIR, SQUARE, Case, every_example, make_batch

TWO = DataSpec(shape=(2,), columns=(Column(name="a"), Column(name="b")))
SMALL = {"hidden": 8, "layers": 1, "tails": "linear"}
LINEAR_DD = torch.tensor([[0.3, -0.8, 0.1], [0.5, 0.2, 0.0], [-0.2, 0.4, -0.6]], dtype=torch.float64)


def build(spec: DataSpec, spread: float = 0.2, **settings: Any) -> FlowMatching:
    case = Case("flow_matching", FlowMatchingSettings.model_validate({**SMALL, **settings}), spec)
    model = case.build(spread=spread).requires_grad_(False)
    assert isinstance(model, FlowMatching)
    return model


def linear(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> FlowMatching:
    """Return a model of NUMBERS whose velocity is v(z, t) = A z: its density is normal, with the deviation exp(A)."""
    model = build(NUMBERS, **settings)
    monkeypatch.setattr(model, "velocity", lambda z_BD, t_B, c_BK: z_BD @ LINEAR_DD.T)
    return model


def closed_form(x_BD: Tensor) -> Tensor:
    scale_DD = torch.linalg.matrix_exp(LINEAR_DD)
    normal: Any = torch.distributions.MultivariateNormal(torch.zeros(3).double(), scale_DD @ scale_DD.T)
    log_prob_B: Tensor = normal.log_prob(x_BD)
    return log_prob_B


def test_the_density_of_a_linear_field_is_its_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x_BD = linear(monkeypatch, density_steps=40), standard_normal((50, 3), 1).double()
    torch.testing.assert_close(model.log_prob(x_BD, torch.zeros(50, 0).double()), closed_form(x_BD), rtol=1e-8, atol=1e-8)


def test_samples_of_a_linear_field_are_its_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    model, z_BD = linear(monkeypatch, sample_steps=400), standard_normal((50, 3), 2).double()
    expected_BD = z_BD @ torch.linalg.matrix_exp(LINEAR_DD).T
    torch.testing.assert_close(model.from_base(z_BD), expected_BD, rtol=1e-5, atol=1e-5)


def test_hutchinsons_estimate_is_the_trace_in_the_mean_over_all_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x_1D = linear(monkeypatch, density_steps=40, probes=1), standard_normal((1, 3), 3).double()
    sign_BD = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
    found_B = model.log_prob(x_1D.expand(8, -1), sign_BD)
    assert float(found_B.std()) > 0.1
    torch.testing.assert_close(found_B.mean(), closed_form(x_1D)[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("settings", [{}, {"conditional": True, "guidance": 3.0}])
def test_the_log_determinant_is_that_of_the_maps_jacobian(settings: dict[str, Any]) -> None:
    model = build(NUMBERS, density_steps=40, **settings)
    y_B, nothing = torch.tensor([2]), torch.zeros(1, 0).double()
    for x_D in standard_normal((5, 3), 4).double():
        jacobian_DD: Tensor = functional.jacobian(lambda x_D: model.to_base(x_D[None], nothing, y_B)[0][0], x_D)  # type: ignore[no-untyped-call]
        _, log_det_B = model.to_base(x_D[None], nothing, y_B)
        torch.testing.assert_close(log_det_B[0], torch.linalg.slogdet(jacobian_DD).logabsdet, rtol=1e-6, atol=1e-6)


def test_many_directions_estimate_the_exact_trace() -> None:
    exact, model = build(PAIR, probes=0), build(PAIR, probes=400)
    x_BX, place_BD = every_example(PAIR), standard_normal((9, 2), 5).double()
    many_BN = torch.cat([place_BD, standard_normal((9, model.density_noise - 2), 6).double()], dim=1)
    torch.testing.assert_close(model.log_prob(x_BX, many_BN), exact.log_prob(x_BX, place_BD), rtol=0, atol=0.1)


def test_the_density_of_rows_integrates_to_one() -> None:
    model, side = build(TWO, spread=0.3, density_steps=20), torch.linspace(-9, 9, 181, dtype=torch.float64)
    density_B = model.log_prob(torch.cartesian_prod(side, side), torch.zeros(181**2, 0).double()).exp()
    assert abs(float(density_B.sum() * (side[1] - side[0]) ** 2) - 1.0) < 1e-4


def test_the_density_of_images_integrates_to_one() -> None:
    model = build(PAIR, spread=0.4, density_steps=20)
    u = (torch.arange(40).double() + 0.5) / 40
    place_BN = torch.special.ndtri(torch.cartesian_prod(u, u))
    parts = [model.log_prob(x_X.expand(1600, -1, -1, -1), place_BN).exp().mean() for x_X in every_example(PAIR)]
    assert abs(float(sum(parts)) - 1.0) < 1e-3


def test_an_encoding_inverts_the_steps_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x_BD = linear(monkeypatch, sample_steps=2), standard_normal((50, 3), 7).double()
    torch.testing.assert_close(model.from_base(model.encode(x_BD)), x_BD, rtol=1e-3, atol=1e-3)
    exact_BD = x_BD @ torch.linalg.matrix_exp(-LINEAR_DD).T
    assert float((model.encode(x_BD) - exact_BD).abs().max()) > 0.01, "two steps are far from the exact solution"


def test_guidance_moves_samples_beyond_their_class_and_leaves_the_density() -> None:
    settings = {"conditional": True, "density_steps": 3}
    none, plain, guided = (build(NUMBERS, guidance=guidance, **settings) for guidance in (0.0, 1.0, 2.0))
    z_BD, y_B = standard_normal((6, 3), 8).double(), torch.arange(6) % 3
    one_hot_BK, t_B = torch.nn.functional.one_hot(y_B, 3).double(), torch.full((1,), 0.3).double()
    with_B, without_B = plain.velocity(z_BD, t_B, one_hot_BK), plain.velocity(z_BD, t_B, torch.zeros_like(one_hot_BK))
    torch.testing.assert_close(guided._guided(z_BD, 0.3, one_hot_BK), 2 * with_B - without_B)
    torch.testing.assert_close(none._guided(z_BD, 0.3, one_hot_BK), without_B)
    torch.testing.assert_close(plain._guided(z_BD, 0.3, one_hot_BK), with_B)
    nothing = torch.zeros(6, 0).double()
    assert torch.equal(guided.log_prob(z_BD, nothing, y_B), plain.log_prob(z_BD, nothing, y_B))


def test_the_loss_is_a_regression_of_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A velocity that knew both ends would have no loss; the velocity zero has the mean square of the path's."""
    model = build(NUMBERS)
    (phase,) = flow_matching.phases(model, FlowMatchingSettings())
    batch = make_batch(phase, NUMBERS, count=2000)
    base_BD = batch.noise_BN[:, :3]
    monkeypatch.setattr(model, "velocity", lambda z_BD, t_B, c_BK: batch.x_BX - base_BD)
    assert float(phase(batch)) == 0.0
    monkeypatch.setattr(model, "velocity", lambda z_BD, t_B, c_BK: torch.zeros_like(z_BD))
    torch.testing.assert_close(phase(batch), (batch.x_BX - base_BD).square().mean())


@pytest.mark.slow
def test_training_reaches_the_entropy_of_a_normal_distribution() -> None:
    scale_DD = torch.tensor([[1.0, 0.0], [0.9, 0.3]], dtype=torch.float64)
    settings = FlowMatchingSettings(hidden=64, layers=2, tails="linear", density_steps=10)
    torch.manual_seed(0)
    model = flow_matching.build(settings, TWO).double()
    (phase,) = (each.double().train() for each in flow_matching.phases(model, settings))
    optimizer = torch.optim.Adam(phase.parameters(), lr=3e-3)
    for step in range(800):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 800)
        x_BD = standard_normal((512, 2), "x", step).double() @ scale_DD.T
        noise_BN = standard_normal((512, phase.noise_size), step).double()
        loss = phase(Batch(x_BD, noise_BN, progress=step / 800, step=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    base_BD = standard_normal((4000, 2), "held out").double()
    with torch.no_grad():
        found = float(model.log_prob(base_BD @ scale_DD.T, torch.zeros(4000, 0).double()).mean())
    true = float(normal_log_density(base_BD).sum(1).mean()) - math.log(0.3)
    assert true - 0.03 < found < true + 0.01


def test_the_trace_is_exact_up_to_a_number_of_dimensions() -> None:
    small, large = build(SQUARE), build(DataSpec(shape=(1, 6, 6), levels=3))
    assert EXACT == 32 and small.probes == 0 and large.probes == 8
    assert small.estimator["trace"] == "exact" and large.estimator["trace"] == "Hutchinson, 8 directions"
    assert small.density_noise == 16 and large.density_noise == 36 + 8 * 36


def test_guidance_needs_classes() -> None:
    with pytest.raises(ValueError, match="guidance moves samples towards their class: set conditional: true, or remove it"):
        FlowMatchingSettings(guidance=2.0)


def test_a_convolutional_network_needs_images() -> None:
    with pytest.raises(SettingsError, match=r"convolutional needs images.*use network: mlp"):
        flow_matching.build(FlowMatchingSettings(network="convolutional"), NUMBERS)
    with pytest.raises(SettingsError, match="conditional: true needs labels"):
        flow_matching.build(FlowMatchingSettings(conditional=True), IMAGE.model_copy(update={"classes": 0}))
