"""Contract of every family with the loop, the evaluation and the saved bundle."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from remint.errors import IntegrityError
from remint.models import families, posterior
from remint.models.bundle import MODEL, WEIGHTS, load_model, save_model
from remint.models.contract import CanImpute, CanSample, HasElbo, HasLatent, HasLogProb, Model, Phase, standard_normal
from remint.records import DataSpec
from remint.runtime import manifest
from tests.support.models_cases import CASES, IMAGE, Case, examples, labels, make_batch

FLOWS = ("flow", "flow_matching")  # their latents are examples, moved
PROTOCOLS = {"sample": CanSample, "log_prob": HasLogProb, "elbo": HasElbo, "latent": HasLatent, "impute": CanImpute}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=[name for name, case in CASES.items() if case.settings.conditional])
def conditional(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def train_phases(phases: list[Phase], steps: int, spec: DataSpec) -> None:
    """Run a phase as the loop does: only its parameters require gradients."""
    for phase in phases:
        phase.train().requires_grad_(False)
    optimizers = [torch.optim.AdamW(phase.parameters(), lr=1e-2, betas=phase.betas) for phase in phases]
    for step in range(steps):
        for phase, optimizer in zip(phases, optimizers, strict=True):
            phase.requires_grad_(True)
            loss = phase(make_batch(phase, spec, step=step))
            assert loss.shape == () and bool(loss.isfinite())
            loss.backward()
            for name, parameter in phase.named_parameters():
                assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), f"{phase.name}: {name}"
            optimizer.step()
            optimizer.zero_grad()
            phase.requires_grad_(False)


def save_sealed(folder: Path, case: Case, model: Model) -> Path:
    save_model(folder, model, case.family, case.settings, case.spec)
    manifest.seal(folder)
    return folder


def assert_are_examples(x: Tensor, spec: DataSpec, count: int) -> None:
    """Check shape, type and range against records.DataSpec."""
    assert x.shape == (count, *spec.shape)
    if not spec.is_table:
        assert x.dtype == torch.uint8 and int(x.max()) < spec.levels
        return
    assert x.dtype == torch.float32
    for values, column in zip(x.unbind(1), spec.columns, strict=True):
        there = values[~values.isnan()]
        assert bool(there.isfinite().all()) and (column.missing or len(there) == count)
        assert column.numeric or set(there.tolist()) <= set(range(len(column.categories)))
        if column.least is not None and column.most is not None and len(there):
            number = there.double() * column.scale + column.mean
            assert float((number - number.round()).abs().max()) < 1e-3
            assert column.least <= int(number.min().round()) and int(number.max().round()) <= column.most


def test_a_model_has_the_capabilities_that_its_settings_imply(case: Case) -> None:
    model = case.build()
    assert {name for name, protocol in PROTOCOLS.items() if isinstance(model, protocol)} == case.settings.can


def test_every_parameter_is_trained_by_exactly_one_phase(case: Case) -> None:
    model = families.family(case.family).build(case.settings, case.spec).double()
    phases = case.phases(model)
    owned = [id(parameter) for phase in phases for parameter in phase.parameters()]
    assert len(owned) == len(set(owned))
    assert {id(parameter) for parameter in model.parameters()} <= set(owned)
    assert len({phase.name for phase in phases}) == len(phases)
    before = [parameter.detach().clone() for phase in phases for parameter in phase.parameters()]
    train_phases(phases, 4, case.spec)
    after = [(name, parameter) for phase in phases for name, parameter in phase.named_parameters()]
    # The critic's last bias is common to both sides of a relativistic loss: its gradient is zero.
    still = [
        name for old, (name, new) in zip(before, after, strict=True) if torch.equal(old, new) and not name.startswith("critic.")
    ]
    assert still == []
    assert all(isinstance(value, float) for phase in phases for value in phase.curves().values())


def test_training_is_a_function_of_its_arguments(case: Case) -> None:
    states = []
    for _ in range(2):
        model = case.build()
        train_phases(case.phases(model), 3, case.spec)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("step", [0, 1])
def test_the_loss_under_bfloat16_autocast_is_close(case: Case, step: int) -> None:
    model = case.build().float()
    for phase in families.family(case.family).phases(model, case.settings):
        batch = make_batch(phase.train(), case.spec, step=step)
        batch.x_BX, batch.noise_BN = batch.x_BX.float(), batch.noise_BN.float()
        full = phase(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = phase(batch)
        assert half.dtype == torch.float32
        half.backward()
        torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(list(CASES)), count=st.integers(1, 9), data=st.data())
def test_a_sample_depends_only_on_its_noise(name: str, count: int, data: st.DataObject) -> None:
    case = CASES[name]
    model = case.build()
    assert isinstance(model, CanSample)
    seed, row = data.draw(st.integers(0, 2**31)), data.draw(st.integers(0, count - 1))
    noise = standard_normal((count, model.sample_noise), seed).double()
    others = standard_normal((count, model.sample_noise), seed, 1).double()
    others[row] = noise[row]
    with torch.no_grad():
        x, y, alone = model.sample(noise), model.sample(others), model.sample(noise[row : row + 1])
    assert_are_examples(x, case.spec, count)
    assert equal(x[row], y[row]) and equal(x[row], alone[0])


def equal(x: Tensor, y: Tensor) -> bool:
    """Return whether values agree to 1e-6; NaN equals NaN. The last digit of a matrix product depends on the batch size."""
    return torch.allclose(x.double(), y.double(), rtol=1e-6, atol=1e-6, equal_nan=True)


def test_likelihoods_accept_bytes_and_have_one_value_for_each_example(case: Case) -> None:
    model, x, y = case.build().requires_grad_(False), examples(case.spec, 5), case.y(5)
    y3 = None if y is None else y[3:4]
    if isinstance(model, HasLogProb):
        noise = standard_normal((5, model.density_noise), 1).double()
        whole = model.log_prob(x, noise, y)
        assert whole.shape == (5,) and bool(whole.isfinite().all())
        torch.testing.assert_close(model.log_prob(x[3:4].double(), noise[3:4], y3), whole[3:4])
    if isinstance(model, HasElbo):
        noise = standard_normal((4, 5, model.latent_noise), 1).double()
        whole = model.elbo(x, noise, y)
        assert whole.shape == (4, 5) and bool(whole.isfinite().all())
        torch.testing.assert_close(model.elbo(x[3:4].double(), noise[1:2, 3:4], y3), whole[1:2, 3:4])


@pytest.fixture(params=[name for name, case in CASES.items() if "latent" in case.settings.can])
def latent(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_latents_and_their_decodings_depend_on_each_example_alone(latent: Case) -> None:
    model, y = latent.build().requires_grad_(False), latent.y(5)
    assert isinstance(model, HasLatent) and isinstance(model, CanSample)
    x = model.sample(standard_normal((5, model.sample_noise), 3).double(), y)  # with gaps, where the family has them
    z = model.encode(x, y)
    assert z.shape == (5, model.latent_size) and bool(z.isfinite().all())
    decoded = model.decode(z, y)
    complete = replace_missing(latent.spec)
    assert_are_examples(decoded, complete, 5)
    y3 = None if y is None else y[3:4]
    torch.testing.assert_close(model.encode(x[3:4], y3), z[3:4])
    assert equal(model.decode(z[3:4], y3), decoded[3:4])
    assert not equal(model.decode(1.0 - z, y), decoded)


def replace_missing(spec: DataSpec) -> DataSpec:
    """Return the spec of complete rows."""
    return spec.model_copy(update={"columns": tuple(column.model_copy(update={"missing": False}) for column in spec.columns)})


def test_the_first_numbers_of_a_sample_are_its_latent(latent: Case) -> None:
    """Where nothing else draws: in a flow, and in images of which each pixel is the likeliest."""
    settings = latent.settings.model_copy(update={"pixels": "mode"}) if latent.family not in FLOWS else latent.settings
    if latent.spec.is_table and latent.family not in FLOWS:
        return
    model = Case(latent.family, settings, latent.spec).build(spread=0.5).requires_grad_(False)
    assert isinstance(model, HasLatent) and isinstance(model, CanSample)
    noise, y = standard_normal((9, model.sample_noise), 4).double(), latent.y(9)
    assert equal(model.sample(noise, y), model.decode(noise[:, : model.latent_size], y))


def test_a_flow_decodes_what_it_encoded(latent: Case) -> None:
    if latent.family in FLOWS:
        spread = 0.5 if latent.family == "flow" else 0.2  # a few steps of a steep velocity have no inverse
        model, x, y = latent.build(spread=spread).requires_grad_(False), examples(latent.spec, 40), latent.y(40)
        assert isinstance(model, HasLatent)
        assert equal(model.decode(model.encode(x, y), y), x)


def test_a_given_class_is_used_for_samples_and_likelihoods(conditional: Case) -> None:
    """The same noise with another class gives another sample, and the same example another likelihood."""
    model = conditional.build(spread=0.5).requires_grad_(False)
    assert model.conditional
    first, second = torch.zeros(40, dtype=torch.int64), torch.ones(40, dtype=torch.int64)
    noise, x = standard_normal((40, getattr(model, "sample_noise", 0)), 3).double(), examples(conditional.spec, 40)
    if isinstance(model, CanSample):
        assert not equal(model.sample(noise, first), model.sample(noise, second))
        last = noise.clone()
        last[:, -1] += 1.0
        assert equal(model.sample(noise, first), model.sample(last, first)), "a class that is given is not drawn as well"
    if isinstance(model, HasLogProb):
        noise = standard_normal((40, model.density_noise), 4).double()
        assert not bool(torch.isclose(model.log_prob(x, noise, first), model.log_prob(x, noise, second)).any())
    if isinstance(model, HasElbo):
        noise = standard_normal((1, 40, model.latent_noise), 4).double()
        assert not bool(torch.isclose(model.elbo(x, noise, first), model.elbo(x, noise, second)).any())


def test_a_missing_class_is_drawn_with_the_last_number_of_the_noise(conditional: Case) -> None:
    """With the shares of the training split: 300 equal steps of the normal distribution give each class its share."""
    model, count = conditional.build(spread=0.5).requires_grad_(False), 300
    assert isinstance(model, CanSample)
    y_N = labels(conditional.spec, 50)
    assert y_N is not None
    share_K = torch.bincount(y_N, minlength=conditional.spec.classes) / len(y_N)
    noise = standard_normal((1, model.sample_noise), 5).double().repeat(count, 1)
    noise[:, -1] = torch.special.ndtri((torch.arange(count) + 0.5) / count)
    y_B = torch.repeat_interleave(torch.arange(conditional.spec.classes), (share_K * count).round().long())
    assert equal(model.sample(noise), model.sample(noise, y_B))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "impute" in case.settings.can])
def test_a_completion_keeps_what_was_observed_and_depends_only_on_its_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior, "ANNEALED", 3)
    monkeypatch.setattr(posterior, "SETTLED", 2)
    case = CASES[name]
    model, count = case.build().requires_grad_(False), 5
    assert isinstance(model, CanImpute)
    x = examples(case.spec, count)
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    observed[0] = True
    observed[1] = False
    observed = observed & ~x.isnan() if case.spec.is_table else observed
    noise, y = standard_normal((count, model.impute_noise), 1).double(), case.y(count)
    hidden = torch.where(observed, x, torch.nan) if case.spec.is_table else torch.where(observed, x, 0)
    with torch.no_grad():
        whole, drawn_class = model.impute(x, observed, noise, y), model.impute(hidden, observed, noise)
        alone = model.impute(x[3:4], observed[3:4], noise[3:4], None if y is None else y[3:4])
    for found in (whole, drawn_class):
        assert found.dtype == x.dtype and torch.equal(found[observed], x[observed])
        assert_are_examples(found, case.spec, count)
        assert not found.isnan().any() and equal(found[0, observed[0]], x[0, observed[0]])
    assert equal(whole[3], alone[0]) and (y is not None or equal(whole, drawn_class))


def test_an_unconditional_model_ignores_classes(case: Case) -> None:
    if case.settings.conditional:
        return
    model, x = case.build().requires_grad_(False), examples(case.spec, 5)
    assert not model.conditional
    y = labels(case.spec, 5)
    if isinstance(model, CanSample):
        noise = standard_normal((5, model.sample_noise), 3).double()
        assert equal(model.sample(noise, y), model.sample(noise))
    if isinstance(model, HasLogProb):
        noise = standard_normal((5, model.density_noise), 4).double()
        assert torch.equal(model.log_prob(x, noise, y), model.log_prob(x, noise))
    if isinstance(model, HasElbo):
        noise = standard_normal((2, 5, model.latent_noise), 4).double()
        assert torch.equal(model.elbo(x, noise, y), model.elbo(x, noise))


def test_a_loaded_model_equals_the_saved_one(case: Case, tmp_path: Path) -> None:
    model = case.build().float()
    digests = [save_model(tmp_path / name, copy.deepcopy(model), case.family, case.settings, case.spec) for name in ("a", "b")]
    assert digests[0] == digests[1] == manifest.sha256_file(tmp_path / "a" / WEIGHTS)
    assert (tmp_path / "a" / MODEL).read_bytes() == (tmp_path / "b" / MODEL).read_bytes()
    manifest.seal(tmp_path / "a")
    before = torch.random.get_rng_state()
    loaded = load_model(tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert isinstance(model, CanSample) and isinstance(loaded, CanSample)
    noise = standard_normal((5, model.sample_noise), 2)
    with torch.no_grad():
        assert equal(loaded.sample(noise), model.sample(noise))


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    folder = save_sealed(tmp_path, CASES["vae"], CASES["vae"].build(IMAGE))
    damaged = bytearray((folder / WEIGHTS).read_bytes())
    damaged[-5] ^= 1
    (folder / WEIGHTS).write_bytes(damaged)
    with pytest.raises(IntegrityError, match=r"weights\.safetensors is damaged"):
        load_model(folder)


def test_weights_of_other_settings_are_refused(tmp_path: Path) -> None:
    folder = save_sealed(tmp_path, CASES["vae"], CASES["vae"].build(IMAGE).float())
    about = json.loads((folder / MODEL).read_text())
    about["model"]["hidden"] = 9
    (folder / MODEL).write_text(json.dumps(about))
    manifest.seal(folder)
    with pytest.raises(IntegrityError, match=r"does not hold the weights that model\.json describes"):
        load_model(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"family": "vae", "model": {"latnet": 3}, "spec": {}}'])
def test_an_invalid_model_json_is_refused(tmp_path: Path, text: str) -> None:
    folder = save_sealed(tmp_path, CASES["gan"], CASES["gan"].build(IMAGE))
    (folder / MODEL).write_text(text)
    manifest.seal(folder)
    with pytest.raises(IntegrityError, match="does not describe a model"):
        load_model(folder)
