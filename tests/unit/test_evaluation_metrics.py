"""Metrics of models with known values: entropies, bounds, and a model that draws the data themselves."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from remint.data.arrays import Dataset
from remint.errors import DataError, RunError, SettingsError
from remint.evaluation import distance, features, likelihood, neighbours
from remint.evaluation.context import EvaluationContext, Measurement, Metric
from remint.evaluation.evaluate import measure
from remint.promotion import comparable
from remint.settings import catalogue, plugins
from remint.settings.judging import EvaluationSettings

LN2 = math.log(2.0)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def context(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    """Return a context of the digits, with principal components as features: a classifier takes longer and has other tests."""
    folder = tmp_path_factory.mktemp("bench")
    features.fit(replace(digits, train=replace(digits.train, y_N=None)), folder / "features")
    return EvaluationContext(
        digits, {"domain": features.load(folder / "features")}, EvaluationSettings(draws=8, importance_samples=50)
    )


def run(model: object, metric: str, context: EvaluationContext) -> Measurement:
    return measure(model, [metric], context, "digits-test")[0][metric]


def counts(dataset: Dataset) -> np.ndarray:
    """Return how often each level occurs at each pixel of the training split, plus one: (P, L)."""
    x_NP = np.array(dataset.train.x_NX).reshape(-1, 64)
    return 1.0 + (x_NP[:, :, None] == np.arange(17)).sum(axis=0)


class Factorised:
    """Independent categorical pixels; the dequantisation adds ``noise`` times a standard normal number, in nats."""

    density_noise, sample_noise = 1, 64

    def __init__(self, dataset: Dataset, noise: float = 0.0) -> None:
        counts_PL = torch.from_numpy(counts(dataset))
        self.p_PL, self.noise = counts_PL / counts_PL.sum(dim=1, keepdim=True), noise

    def log_prob(self, x_BCHW: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        x_BP = x_BCHW.flatten(1).long()
        return self.p_PL.log()[torch.arange(64), x_BP].sum(dim=1) + self.noise * noise_BN[:, 0]

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        uniform_BP = torch.special.ndtr(noise_BN.double())
        above_BPL = uniform_BP[:, :, None] > self.p_PL.cumsum(dim=1)
        return above_BPL.sum(dim=2).clamp(max=16).to(torch.uint8).reshape(-1, 1, 8, 8)


class TwoCauses:
    """Model with two equally likely latent values that the encoder does not infer: p(x) is the mean of p_0(x) and p_1(x)."""

    latent_noise = 1

    def __init__(self) -> None:
        self.logits_2L = torch.stack([torch.linspace(0.05, -0.05, 17), torch.linspace(-0.05, 0.05, 17)]).double()

    def log_p_2B(self, x_BCHW: Tensor) -> Tensor:
        log_p_2L = self.logits_2L.log_softmax(dim=1)
        return log_p_2L[:, x_BCHW.flatten(1).long()].sum(dim=2)

    def elbo(self, x_BCHW: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
        log_p_2B = self.log_p_2B(x_BCHW)
        return torch.where(noise_KBN[:, :, 0] > 0, log_p_2B[1], log_p_2B[0])


class Resampler:
    """Model that draws training images: no model of these data can look better."""

    sample_noise = 1

    def __init__(self, dataset: Dataset) -> None:
        self.x_NCHW = torch.from_numpy(np.array(dataset.train.x_NX))

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        return self.x_NCHW[(torch.special.ndtr(noise_BN[:, 0]) * len(self.x_NCHW)).long()]


def test_nll_is_the_cross_entropy_of_a_factorised_model(context: EvaluationContext) -> None:
    p_PL = counts(context.dataset) / counts(context.dataset).sum(axis=1, keepdims=True)
    x_NP = np.array(context.dataset.held_out.x_NX).reshape(-1, 64)
    expected_N = np.array([np.mean([-math.log2(p_PL[p, level]) for p, level in enumerate(x_P)]) for x_P in x_NP])
    found = run(Factorised(context.dataset), "nll", context)
    np.testing.assert_allclose(found.values_N, expected_N, rtol=1e-12)
    np.testing.assert_allclose(likelihood.independent_baseline(context).values_N, expected_N, rtol=1e-12)
    assert found.low < expected_N.mean() < found.high and found.n == len(x_NP)


def test_nll_of_a_uniform_model_is_the_number_of_bits_of_a_level(context: EvaluationContext) -> None:
    class Uniform:
        density_noise = 1

        def log_prob(self, x_BCHW: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
            return torch.full((len(x_BCHW),), -64 * math.log(17.0), dtype=torch.float64)

    np.testing.assert_allclose(run(Uniform(), "nll", context).values_N, math.log2(17.0), rtol=1e-14)


@pytest.mark.parametrize("repeats", [2, 4, 16])
def test_nll_takes_as_many_dequantisations_as_its_noise_needs(context: EvaluationContext, repeats: int) -> None:
    """A noise whose variance within an example is known, between two numbers of the rule."""
    exact = run(Factorised(context.dataset), "nll", context)
    between = (exact.values_N * 64 * LN2).var(ddof=1)
    noise = (0.75 * repeats * likelihood.NOISE_SHARE * between) ** 0.5
    noisy = run(Factorised(context.dataset, noise), "nll", context)
    assert (exact.repeats, noisy.repeats) == (likelihood.FIRST_SAMPLES, repeats)
    spread = (noisy.values_N - exact.values_N).std() * 64 * LN2  # of the mean of the draws' noise
    assert spread == pytest.approx(noise * repeats**-0.5, rel=0.15)
    assert exact.fingerprint == noisy.fingerprint, "the number differs between models, the rule does not"


def test_the_number_of_samples_has_a_limit(context: EvaluationContext) -> None:
    assert run(Factorised(context.dataset, noise=1e3), "nll", context).repeats == likelihood.MOST_SAMPLES


def test_one_example_of_data_without_spread_gets_the_most_samples(context: EvaluationContext) -> None:
    """Where nothing shows the variance between examples, and where it is 0."""
    one = replace(context, settings=EvaluationSettings(examples=1))
    assert run(Factorised(context.dataset, noise=1.0), "nll", one).repeats == likelihood.MOST_SAMPLES
    same = replace(context.dataset.held_out, x_NX=np.zeros_like(context.dataset.held_out.x_NX))
    equal = replace(context, dataset=replace(context.dataset, held_out=same))
    assert run(Factorised(equal.dataset, noise=1.0), "nll", equal).repeats == likelihood.MOST_SAMPLES
    assert run(Factorised(equal.dataset, noise=0.0), "nll", equal).repeats == likelihood.FIRST_SAMPLES


def test_a_likelihood_has_at_most_so_many_examples_which_the_seed_chooses(context: EvaluationContext) -> None:
    every = run(Factorised(context.dataset), "nll", context)
    some = {seed: replace(context, settings=EvaluationSettings(examples=200, seed=seed)) for seed in (0, 1)}
    found = {seed: run(Factorised(context.dataset), "nll", chosen) for seed, chosen in some.items()}
    for seed, measured in found.items():
        place_N = some[seed].judged
        assert measured.n == len(set(place_N.tolist())) == 200 and (np.diff(place_N) > 0).all()
        np.testing.assert_array_equal(measured.values_N, every.values_N[place_N])
        y_N = np.asarray(context.dataset.held_out.y_N)[place_N]
        for y, of_class in measured.by_class.items():
            np.testing.assert_array_equal(of_class.values_N, measured.values_N[y_N == y])
        np.testing.assert_allclose(likelihood.independent_baseline(some[seed]).values_N, measured.values_N, rtol=1e-12)
    assert not np.array_equal(some[0].judged, some[1].judged)
    noisy = {number: run(Factorised(context.dataset, noise), "nll", some[0]).values_N for number, noise in enumerate((0.1, 0.2))}
    np.testing.assert_allclose(noisy[1] - found[0].values_N, 2 * (noisy[0] - found[0].values_N), atol=1e-12)


def test_elbo_and_iwae_of_a_two_cause_model_equal_their_closed_forms(context: EvaluationContext) -> None:
    """ELBO is the mean of the two log probabilities; IWAE-K approaches the log of their mean as K grows."""
    model = TwoCauses()
    x_NCHW = torch.from_numpy(np.array(context.dataset.held_out.x_NX))
    log_p_2N = model.log_p_2B(x_NCHW).numpy()
    to_bits = -1.0 / (64 * LN2)
    elbo, log_p = log_p_2N.mean(axis=0) * to_bits, (np.logaddexp(*log_p_2N) - LN2) * to_bits
    many = replace(context, settings=EvaluationSettings(importance_samples=4000))
    found = measure(model, ["elbo", "iwae"], many, "digits-test")[0]
    # Standard error of a mean of 4,000 signs, with the half distance of the two values.
    error_N = np.abs(np.subtract(*log_p_2N)) / 2 * -to_bits / 4000**0.5
    assert (np.abs(found["elbo"].values_N - elbo) < 5 * error_N + 1e-12).all()
    assert (np.abs(found["iwae"].values_N - log_p) < 5 * error_N + 1e-12).all()
    assert (found["iwae"].values_N <= found["elbo"].values_N).all(), "of the same samples, by Jensen's inequality"
    assert (elbo - log_p).mean() > 20 * error_N.mean(), "the two bounds must be far enough apart for this test to tell them"
    one = replace(context, settings=EvaluationSettings(importance_samples=1))
    alone = measure(model, ["elbo", "iwae"], one, "digits-test")[0]
    gap_N = np.abs(alone["iwae"].values_N - log_p_2N * to_bits).min(axis=0)
    np.testing.assert_allclose(gap_N, 0.0, atol=1e-14)  # IWAE-1 is the weight of one cause
    assert alone["elbo"].repeats == likelihood.MOST_SAMPLES and found["elbo"].repeats == 4000


def test_the_elbo_alone_is_not_measured_with_the_samples_of_iwae(context: EvaluationContext) -> None:
    """The expectation of the bound is the same, and so is its fingerprint."""
    alone = run(TwoCauses(), "elbo", context)
    both = measure(TwoCauses(), ["elbo", "iwae"], replace(context, settings=EvaluationSettings(importance_samples=128)), "t")[0]
    assert alone.repeats == likelihood.MOST_SAMPLES < both["elbo"].repeats == 128
    assert alone.fingerprint == both["elbo"].fingerprint and both["iwae"].fingerprint["importance_samples"] == 128


@pytest.mark.parametrize("memory", [64, 3 * 64, 5 * 128 * 64])
def test_importance_samples_are_computed_in_parts(
    context: EvaluationContext, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    """Less memory than one block of examples takes: first some rows with all samples, then some samples of one row."""
    whole = run(TwoCauses(), "iwae", context).values_N
    monkeypatch.setattr(likelihood, "SAMPLE_BLOCK", memory)
    sizes = []

    class Watched(TwoCauses):
        def elbo(self, x_BCHW: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
            sizes.append(x_BCHW.numel() * len(noise_KBN))
            return super().elbo(x_BCHW, noise_KBN)

    np.testing.assert_allclose(run(Watched(), "iwae", context).values_N, whole, rtol=1e-13)
    assert max(sizes) <= memory


def test_a_resampler_reaches_the_floor_and_a_factorised_model_does_not(context: EvaluationContext) -> None:
    floor = distance.real_data_floor("domain", context)
    resampled = run(Resampler(context.dataset), "fd_domain", context)
    assert resampled.low < floor.high * 1.1 and floor.low * 0.9 < resampled.high
    assert run(Factorised(context.dataset), "fd_domain", context).values_N.min() > 3.0 * floor.values_N.max()
    assert len(resampled.values_N) == 8 and resampled.n == floor.n == len(context.dataset.held_out)


def test_fewer_samples_than_features_give_a_finite_distance(context: EvaluationContext) -> None:
    few = replace(context, settings=EvaluationSettings(samples=20, draws=4))
    assert np.isfinite(run(Resampler(context.dataset), "fd_domain", few).values_N).all()


@pytest.mark.parametrize("metric", ["nll", "fd_domain"])
def test_a_measurement_is_a_function_of_its_seed(context: EvaluationContext, metric: str) -> None:
    model = Factorised(context.dataset, noise=1.0)
    first, again = run(model, metric, context), run(model, metric, context)
    other = run(model, metric, replace(context, settings=context.settings.model_copy(update={"seed": 1})))
    np.testing.assert_array_equal(first.values_N, again.values_N)
    assert not np.array_equal(first.values_N, other.values_N) and first.fingerprint != other.fingerprint


def test_draws_differ_from_each_other(context: EvaluationContext) -> None:
    assert len(set(run(Resampler(context.dataset), "fd_domain", context).values_N)) == 8
    assert len(set(distance.real_data_floor("domain", context).values_N)) == 8


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_value_is_counted_and_never_dropped(context: EvaluationContext, bad: float) -> None:
    class Broken(Factorised):
        def log_prob(self, x_BCHW: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
            nats_B = super().log_prob(x_BCHW, noise_BN)
            nats_B[5] = bad  # one of each of the three blocks
            return nats_B

    with pytest.raises(RunError, match=r"metric nll: 3 of 359 values are not finite"):
        run(Broken(context.dataset), "nll", context)


def test_one_impossible_importance_sample_spoils_the_elbo_and_not_iwae(context: EvaluationContext) -> None:
    class Impossible(TwoCauses):
        def elbo(self, x_BCHW: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
            log_w_KB = super().elbo(x_BCHW, noise_KBN)
            log_w_KB[0] = -math.inf
            return log_w_KB

    with pytest.raises(RunError, match="metric elbo: 359 of 359"):
        run(Impossible(), "elbo", context)


@pytest.mark.parametrize("spoil", [lambda x: x.float(), lambda x: x[:, :, :7], lambda x: x + 17])
def test_samples_must_be_images_of_the_dataset(context: EvaluationContext, spoil: Any) -> None:
    class Wrong(Resampler):
        def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
            spoiled: Tensor = spoil(super().sample(noise_BN))
            return spoiled

    with pytest.raises(RunError, match="the model's samples are"):
        run(Wrong(context.dataset), "fd_domain", context)


def test_metrics_that_a_model_does_not_support_are_not_reported(context: EvaluationContext) -> None:
    with pytest.raises(SettingsError, match=r"pipelines\.digits-test\.evaluation\.metrics: nll needs a model of type HasLogProb"):
        run(Resampler(context.dataset), "nll", context)
    with pytest.raises(SettingsError, match="did you mean 'fd_domain'"):
        run(Resampler(context.dataset), "fd_domian", context)


def test_a_distance_of_one_image_is_refused(context: EvaluationContext) -> None:
    with pytest.raises(DataError, match=r"datasets\.digits\.split\.held_out"):
        run(Resampler(context.dataset), "fd_domain", replace(context, settings=EvaluationSettings(samples=1)))


def test_fingerprints_differ_for_values_that_are_not_comparable(context: EvaluationContext) -> None:
    model = Resampler(context.dataset)
    context = replace(context, settings=EvaluationSettings(samples=60, draws=2))
    known = run(model, "fd_domain", context).fingerprint
    assert known["extractor"] == context.extractors["domain"].sha256 and known["dataset"] == context.dataset.version.digest
    changed = [
        replace(context, settings=context.settings.model_copy(update={"samples": 61})),
        replace(context, settings=context.settings.model_copy(update={"draws": 3})),
        replace(context, extractors={"domain": replace(context.extractors["domain"], sha256="other")}),
    ]
    assert all(run(model, "fd_domain", other).fingerprint != known for other in changed)
    fewer = replace(context, settings=context.settings.model_copy(update={"importance_samples": 49}))
    assert run(TwoCauses(), "iwae", fewer).fingerprint != run(TwoCauses(), "iwae", context).fingerprint


def test_each_key_of_a_fingerprint_has_words(context: EvaluationContext) -> None:
    context = replace(context, settings=EvaluationSettings(samples=80, draws=2, importance_samples=2))
    drawn = [name for name, facts in catalogue.METRICS.items() if facts.needs == "sample" and facts.features in (None, "domain")]
    models = {"nll": Factorised(context.dataset), "iwae": TwoCauses(), **dict.fromkeys(drawn, Resampler(context.dataset))}
    keys = {key for name, model in models.items() for key in run(model, name, context).fingerprint}
    assert {"seed", "neighbours", "kernel", "sizes", "dequantisation"} <= keys <= set(comparable.METHOD)


def test_the_catalogue_names_the_module_of_each_metric() -> None:
    modules = {importlib.import_module(plugins.module_name(name, "metric")) for name in catalogue.METRICS}
    assert {name: module.__name__ for module in modules for name in module.METRICS} == {
        name: plugins.module_name(name, "metric") for name in catalogue.METRICS
    }


def test_a_plug_in_that_returns_an_undeclared_metric_is_refused(
    context: EvaluationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        neighbours.METRICS, "novelty", Metric(lambda model, context: {"nolevty": distance.real_data_floor("domain", context)})
    )
    with pytest.raises(SettingsError, match="metric 'novelty': its plug-in's measure returns nolevty but not novelty"):
        run(Resampler(context.dataset), "novelty", context)


def test_context_values_describe_the_data_and_appear_once(context: EvaluationContext) -> None:
    measured, references = measure(Factorised(context.dataset), ["nll", "fd_domain"], context, "digits-test")
    assert set(measured) == {"nll", "fd_domain"} and set(references) == {"factorised", "fd_domain_floor"}
    assert references["factorised"].value == pytest.approx(2.44, abs=0.02) and references["factorised"].unit == "bits/dim"
    assert references["fd_domain_floor"].n == 359


def test_each_pass_over_the_model_runs_once(context: EvaluationContext) -> None:
    passes = []

    class Counted(TwoCauses):
        def elbo(self, x_BCHW: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
            passes.append(noise_KBN.shape[:2].numel())
            return super().elbo(x_BCHW, noise_KBN)

    many = replace(context, settings=EvaluationSettings(importance_samples=likelihood.MOST_SAMPLES))
    measure(Counted(), ["elbo", "iwae"], many, "digits-test")
    assert sum(passes) == likelihood.MOST_SAMPLES * len(context.dataset.held_out)
