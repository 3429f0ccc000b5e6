"""The VAE-GAN: loss and parameters of each phase, the ELBO as a lower bound, and the mean that the critic sees. In float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from remint.errors import SettingsError
from remint.models.adversarial import relativistic
from remint.models.contract import Phase, standard_normal
from remint.models.layers import normal_log_density, to_levels, to_unit
from remint.models.likelihoods import level_likelihood
from remint.models.vae import Elbo
from remint.models.vaegan import DecoderPhase, VaeGan
from remint.settings.params import read_params, validate_params
from remint.settings.recipe import VaeGanCriticSettings, VaeGanSettings
from tests.support.models_cases import IMAGE, MIXED, PAIR, Case, every_example, make_batch

CRITIC = VaeGanCriticSettings(hidden=8, layers=2, penalty_every=2)
SETTINGS = VaeGanSettings(latent=1, hidden=8, dropout=0.0, mixtures=2, adversarial=0.3, critic=CRITIC)


def a_model(settings: VaeGanSettings = SETTINGS, spec: object = PAIR, spread: float = 0.5) -> VaeGan:
    model = Case("vaegan", settings).build(spec, seed=2, spread=spread)  # type: ignore[arg-type]
    assert isinstance(model, VaeGan)
    return model


def its_phases(model: VaeGan, settings: VaeGanSettings = SETTINGS) -> dict[str, Phase]:
    return {phase.name: phase for phase in Case("vaegan", settings).phases(model)}


def test_three_phases_train_encoder_decoder_and_critic() -> None:
    model = a_model(spec=IMAGE)
    phases = its_phases(model)
    assert list(phases) == ["encoder", "decoder", "critic"]
    owned = {name: {id(parameter) for parameter in phase.parameters()} for name, phase in phases.items()}
    assert owned["encoder"] == {id(parameter) for parameter in model.encoder.parameters()}
    assert owned["decoder"] == {id(parameter) for part in (model.decoder, model.likelihood) for parameter in part.parameters()}
    assert not owned["critic"] & {id(parameter) for parameter in model.parameters()}


def test_gradients_reach_only_the_parameters_of_the_phase() -> None:
    """Also if other parameters require gradients: else a phase could train a network that only passes gradients on."""
    settings = SETTINGS.model_copy(update={"likelihood": "sigma_gaussian"})
    model = a_model(settings, IMAGE)
    phases = its_phases(model, settings)
    everything = {id(parameter): parameter for phase in phases.values() for parameter in phase.parameters()}
    for phase in phases.values():
        for parameter in everything.values():
            parameter.grad = None
            parameter.requires_grad_(False)
        phase.requires_grad_(True)
        phase(make_batch(phase, IMAGE)).backward()
        own = {id(parameter) for parameter in phase.parameters()}
        moved = {key for key, parameter in everything.items() if parameter.grad is not None and bool(parameter.grad.any())}
        # A relativistic loss does not depend on the last bias of the critic.
        assert moved <= own and len(moved) >= len(own) - 1, phase.name


def test_the_encoder_minimises_the_loss_of_a_plain_vae() -> None:
    model = a_model()
    phase = its_phases(model)["encoder"]
    batch = make_batch(phase, PAIR)
    assert torch.equal(phase(batch), Elbo(model, SETTINGS)(batch))
    assert phase.curves().keys() == {"kl", "active_units"}


def test_the_decoder_minimises_the_likelihood_term_plus_the_critic_term() -> None:
    """The explicit loss and its weight: without the critic term it is the likelihood term."""
    model = a_model()
    phase = its_phases(model)["decoder"]
    assert isinstance(phase, DecoderPhase)
    batch = make_batch(phase, PAIR)
    of_posterior, of_prior = batch.noise_BN.split([1, 1], dim=1)
    mean, scale = model.posterior(batch.x_BX)
    bits = -model.log_likelihood(batch.x_BX, mean + scale * of_posterior).mean() / (PAIR.dims * math.log(2))
    drawn = phase.critic(model(of_prior))
    adversarial = relativistic(drawn, phase.critic(to_unit(batch.x_BX, PAIR.levels)))
    torch.testing.assert_close(phase(batch), bits + 0.3 * adversarial)
    assert phase.curves() == pytest.approx({"reconstruction": bits.item(), "adversarial": adversarial.item()})


def exact_log_prob(model: VaeGan, x: Tensor) -> Tensor:
    """Return log p(x) by quadrature over the one latent."""
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    log_joint = model.log_likelihood(x, z.view(-1, 1, 1).expand(-1, len(x), 1)) + normal_log_density(z).unsqueeze(1)
    return log_joint.logsumexp(0) + math.log(16 / 2000)


def test_the_elbo_stays_a_lower_bound_after_critic_steps() -> None:
    """After steps dominated by the critic term, probabilities sum to 1 and the ELBO is below their logarithms."""
    settings = SETTINGS.model_copy(update={"adversarial": 20.0})
    model = a_model(settings)
    phases = its_phases(model, settings)
    before = exact_log_prob(model.requires_grad_(False), every_example(PAIR))
    for phase in phases.values():
        phase.requires_grad_(False)
    for step in range(10):
        for phase in phases.values():
            phase.requires_grad_(True)
            phase(make_batch(phase, PAIR, step=step)).backward()
            with torch.no_grad():
                for parameter in phase.parameters():
                    parameter -= 0.05 * parameter.grad
                    parameter.grad = None
            phase.requires_grad_(False)
    x = every_example(PAIR)
    exact = exact_log_prob(model, x)
    assert float((exact - before).abs().max()) > 0.05
    torch.testing.assert_close(exact.exp().sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-9, atol=0)
    quantile = torch.special.ndtri((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    elbo = model.elbo(x, quantile.view(-1, 1, 1).expand(-1, 9, 1)).mean(0)
    assert bool((elbo < exact).all())


def test_a_sample_is_the_mean_that_the_critic_saw() -> None:
    model = a_model(spec=IMAGE)
    noise = standard_normal((20, model.sample_noise), 3).double()
    with torch.no_grad():
        judged = model(noise)
        assert judged.shape == (20, *IMAGE.shape) and float(judged.abs().max()) <= 1.0
        assert torch.equal(model.sample(noise), to_levels(judged, IMAGE.levels))


@pytest.mark.parametrize("kind", ["discretised_logistic", "sigma_gaussian", "categorical", "bernoulli"])
def test_the_mean_is_the_expected_level(kind: str) -> None:
    """The mean over all levels; for likelihoods integrated over a level the tolerance is half a step, for rounding."""
    levels = 2 if kind == "bernoulli" else 33
    law = level_likelihood(kind, levels, 2).double()  # type: ignore[arg-type]
    theta = 2.0 * standard_normal((200, law.parameters_per_dim), 4).double()
    level = torch.arange(levels).double()
    probability = law.log_prob(level.unsqueeze(1).expand(-1, 200), theta.expand(levels, -1, -1)).exp()
    expected = (probability * to_unit(level, levels).unsqueeze(1)).sum(0)
    step = 2 / (levels - 1) if kind in ("discretised_logistic", "sigma_gaussian") else 0.0
    torch.testing.assert_close(law.mean(theta), expected, rtol=1e-12, atol=step / 2 + 1e-12)


@pytest.mark.parametrize("kind", ["discretised_logistic", "sigma_gaussian"])
def test_the_mean_of_a_continuous_likelihood_is_that_of_its_clamped_values(kind: str) -> None:
    """With very many levels, rounding is negligible. The mean is also differentiable."""
    law = level_likelihood(kind, 4097, 1).double()  # type: ignore[arg-type]
    theta = standard_normal((6, law.parameters_per_dim), 5).double().requires_grad_(True)
    level = torch.arange(4097).double()
    probability = law.log_prob(level.unsqueeze(1).expand(-1, 6), theta.expand(4097, -1, -1)).exp()
    torch.testing.assert_close(law.mean(theta), (probability * to_unit(level, 4097).unsqueeze(1)).sum(0), rtol=0, atol=1e-6)
    assert torch.autograd.gradcheck(law.mean, (theta,))


def test_unsupported_settings_are_refused() -> None:
    with pytest.raises(SettingsError, match="family 'vaegan' needs images"):
        a_model(spec=MIXED)
    content = read_params(Path(__file__).parents[2])
    content["pipelines"] = {"x": content["pipelines"]["digits-vae"] | {"family": "vaegan"}}
    for critic, words in (
        ({"conditional": True}, "critic.conditional: remove it and set model.conditional"),
        ({"hiden": 3}, "critic: unknown key 'hiden': did you mean 'hidden'"),
    ):
        content["pipelines"]["x"]["model"] = {"critic": critic}
        with pytest.raises(SettingsError, match=f"params.yaml: pipelines.x.model[.:] ?{words}"):
            validate_params(content)
