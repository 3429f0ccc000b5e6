"""Completions of each family are draws of p(missing | observed): against closed forms, and sums over all examples.

Shapes: B chains, D dimensions of an example, Y classes.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from remint.models import posterior
from remint.models.bijections import Coupling
from remint.models.contract import CanImpute, HasLogProb, Model, standard_normal
from remint.models.flow import Flow
from remint.models.labels import Labels
from remint.models.layers import normal_log_density
from remint.models.vae import Vae
from remint.records import DataSpec
from remint.settings.recipe import FlowSettings, VaeSettings
from tests.support.models_cases import CASES, LABELLED_PAIR, NUMBERS, PAIR, Case, every_example, labels

COUNT = 2_000  # chains


def completions(model: Model, x_X: Tensor, observed_X: Tensor, y: int | None = None, count: int = COUNT) -> Tensor:
    """Return completions of one example, float64 (B, D)."""
    assert isinstance(model, CanImpute)
    noise = standard_normal((count, model.impute_noise), 1).double()
    x_BX, observed_BX = x_X.expand(count, *x_X.shape), observed_X.expand(count, *x_X.shape)
    with torch.no_grad():
        found_BX = model.impute(x_BX, observed_BX, noise, _all(y, count))
    return found_BX.flatten(1).double()


def test_a_chain_has_the_moments_of_a_gaussian_posterior() -> None:
    """s ~ N(0, I), x | s ~ N(A s, r^2 I): the posterior is N(m, V) with V = (I + A'A / r^2)^-1 and m = V A' x / r^2."""
    reading, noise_scale, x = standard_normal((3, 2), 2).double(), 0.1, torch.tensor([0.5, -1.0, 2.0]).double()
    covariance = torch.linalg.inv(torch.eye(2) + reading.T @ reading / noise_scale**2)
    mean = covariance @ reading.T @ x / noise_scale**2
    unlabelled = Labels(False, PAIR)

    def log_ratio(state_BS: Tensor, _: Tensor | None) -> Tensor:
        return normal_log_density((x - state_BS @ reading.T) / noise_scale).sum(1)

    noise = standard_normal((COUNT, posterior.noise_size(2, unlabelled)), 3).double()
    state, y = posterior.draw(log_ratio, noise, 2, unlabelled)
    spread = covariance.diag().sqrt()
    torch.testing.assert_close((state.mean(0) - mean) / spread, torch.zeros(2).double(), rtol=0, atol=5 / COUNT**0.5)
    error = (torch.cov(state.T) - covariance) / spread.outer(spread)
    assert float(error.abs().max()) < 8 / COUNT**0.5 and y is None


def test_a_chain_moves_between_modes() -> None:
    """Two modes of weights 3 : 1. (Where a wall between modes is high, each keeps the share that it has at a low heat.)"""
    weight = torch.tensor([0.75, 0.25], dtype=torch.float64).log()

    def log_ratio(state_BS: Tensor, _: Tensor | None) -> Tensor:
        modes = torch.stack([normal_log_density((state_BS[:, 0] - at) / 0.4) for at in (1.0, -1.0)], dim=1)
        return torch.logsumexp(weight + modes, 1)

    unlabelled = Labels(False, PAIR)
    noise = standard_normal((COUNT, posterior.noise_size(1, unlabelled)), 4).double()
    state, _ = posterior.draw(log_ratio, noise, 1, unlabelled)
    assert float((state > 0).double().mean()) == pytest.approx(0.75, abs=4 * (0.25 / COUNT) ** 0.5)


def linear_flow() -> Flow:
    """Return a flow of three numbers that is a linear map: its density is Gaussian."""
    torch.manual_seed(0)
    flow = Flow(FlowSettings(coupling="affine", couplings=4, tails="linear", dropout=0.0), NUMBERS)
    for layer in flow.bijections.modules():
        if isinstance(layer, Coupling):
            layer.net = nn.Sequential(nn.Linear(len(layer.kept), 2 * len(layer.moved)))
            with torch.no_grad():
                layer.net[0].weight[0::2] = 0.0  # the log scales depend on nothing
    return flow.double().eval().requires_grad_(False)


@pytest.mark.parametrize("observed", [[True, False, True], [False, True, False], [False, False, False]])
def test_a_linear_flow_draws_from_the_conditional_gaussian(observed: list[bool]) -> None:
    flow, x = linear_flow(), torch.tensor([0.7, -1.1, 0.4])
    nothing = torch.zeros(1, 0).double()
    inverse = torch.linalg.inv(
        torch.autograd.functional.jacobian(lambda x: flow.to_base(x, nothing)[0][0], x[None].double())[:, 0]
    )
    covariance, mean = inverse @ inverse.T, -inverse @ flow.to_base(torch.zeros(1, 3).double(), nothing)[0][0]
    seen = torch.tensor(observed)
    reading = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, ~seen])
    expected = mean[~seen] + (x.double()[seen] - mean[seen]) @ reading
    variance = covariance[~seen][:, ~seen] - covariance[~seen][:, seen] @ reading
    drawn = completions(flow, x, seen)[:, ~seen]
    spread = variance.diag().sqrt()
    assert float(((drawn.mean(0) - expected) / spread).abs().max()) < 5 / COUNT**0.5
    error = (torch.cov(drawn.T).reshape(variance.shape) - variance) / spread.outer(spread)
    assert float(error.abs().max()) < 10 / COUNT**0.5


def probabilities(model: Model, spec: DataSpec, y: int | None) -> Tensor:
    """Return the probability of each of the nine examples, float64, by quadrature over the latent or the dequantisation."""
    every = every_example(spec)
    if isinstance(model, HasLogProb):
        noise = torch.linspace(-8, 8, 161).double()
        grid = torch.cartesian_prod(noise, noise)
        each = [model.log_prob(x.expand(len(grid), *x.shape), grid, _all(y, len(grid))) for x in every]
        return torch.stack([(log_prob_M + normal_log_density(grid).sum(1)).exp().sum() * 0.01 for log_prob_M in each])
    assert isinstance(model, Vae)
    z = torch.linspace(-8, 8, 1_601).double()[:, None]
    each = [model.log_likelihood(x.expand(len(z), *x.shape), z, _all(y, len(z))) for x in every]
    return torch.stack([(log_prob_M + normal_log_density(z[:, 0])).exp().sum() * 0.01 for log_prob_M in each])


def _all(y: int | None, count: int) -> Tensor | None:
    return None if y is None else torch.full((count,), y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "conditional"),
    [
        ("flow", False),
        pytest.param("flow", True, marks=pytest.mark.soak),
        ("vae", False),
        ("vae", True),
        ("vae-categorical", True),
    ],
)
def test_levels_are_drawn_with_their_conditional_probabilities(name: str, conditional: bool) -> None:
    """p(second pixel | first) from the nine probabilities; without the class, those of all classes with their shares."""
    spec = LABELLED_PAIR if conditional else PAIR
    settings = CASES[name].settings.model_copy(update={"conditional": conditional})
    model = Case(CASES[name].family, settings, spec).build(seed=1, spread=0.25 if name == "flow" else 0.8).requires_grad_(False)
    classes: list[int | None] = [0, 1, 2] if conditional else [None]
    joint = torch.stack([probabilities(model, spec, y) for y in classes]).view(-1, 3, 3)
    torch.testing.assert_close(joint.sum((1, 2)), torch.ones(len(joint)).double(), rtol=0, atol=2e-3)
    share = torch.bincount(labels(spec, 50), minlength=3).double() / 50 if conditional else torch.ones(1).double()  # type: ignore[arg-type]
    x, observed = every_example(spec)[3], torch.tensor([True, False]).view(1, 1, 2)  # its first pixel is 1
    of_all = (share[:, None, None] * joint).sum(0)[1]
    wanted: list[tuple[int | None, Tensor]] = [(None, of_all / of_all.sum())]
    wanted += [(2, joint[2, 1] / joint[2, 1].sum())] if conditional else []
    count = 400 if name == "flow" else COUNT
    for y, expected in wanted:
        drawn = completions(model, x, observed, y, count)[:, 1].long()
        found = torch.bincount(drawn, minlength=3) / count
        assert float((found - expected).abs().max()) < 4 * (0.25 / count) ** 0.5, (found, expected)
    if conditional:
        assert float((wanted[0][1] - wanted[1][1]).abs().max()) > 0.02, "the class matters in this test"


def test_all_missing_is_a_draw_of_the_model() -> None:
    case = Case("vae", VaeSettings(latent=1, hidden=8, dropout=0.0, pixels="draw"), PAIR)
    model = case.build(spread=0.8).requires_grad_(False)
    nothing = torch.zeros(1, 1, 2, dtype=torch.bool)
    drawn = completions(model, every_example(PAIR)[0], nothing).long()
    found = torch.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9) / COUNT
    assert float((found - probabilities(model, PAIR, None)).abs().max()) < 4 * (0.25 / COUNT) ** 0.5
