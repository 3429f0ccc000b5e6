"""The example of docs/how-to/add-a-family.md against exact oracles in float64, and the page against the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from examples.pixelcnn.family import Likelihood, PixelCnn, Settings, build
from remint.errors import SettingsError
from remint.models.contract import standard_normal
from remint.records import DataSpec
from remint.settings.params import read_params, validate_params
from tests.support.models_cases import IMAGE, LABELLED_PAIR, MIXED, PAIR, Case, every_example, examples, labels, make_batch

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples/pixelcnn"
SMALL = Settings(hidden=6, layers=3, dropout=0.0)
NONE = torch.zeros(1, 0, dtype=torch.float64)
SQUARE = DataSpec(shape=(2, 2, 2), levels=2)  # 256 examples; rows, columns and channels


def a_model(spec: DataSpec, settings: Settings = SMALL) -> PixelCnn:
    model = Case("pixelcnn", settings).build(spec, spread=0.4).requires_grad_(False)
    assert isinstance(model, PixelCnn)
    return model


@pytest.mark.parametrize("spec", [PAIR, SQUARE])
def test_probabilities_of_all_images_sum_to_one(spec: DataSpec) -> None:
    x = every_example(spec)
    log_prob = a_model(spec).log_prob(x, NONE.expand(len(x), 0))
    torch.testing.assert_close(log_prob.exp().sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-12, atol=0)
    assert log_prob.std() > 0.1, "no uniform distribution, whose sum would be right by luck"


def test_probabilities_given_each_class_sum_to_one() -> None:
    model, x = a_model(LABELLED_PAIR, SMALL.model_copy(update={"conditional": True})), every_example(PAIR)
    mass = [model.log_prob(x, NONE.expand(9, 0), torch.full((9,), y)).exp() for y in range(3)]
    for given_y in mass:
        torch.testing.assert_close(given_y.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-12, atol=0)
    assert not torch.allclose(mass[0], mass[1], rtol=0.05)


def test_samples_are_drawn_with_the_probabilities() -> None:
    """A 120 x 120 grid over both numbers of the noise: shares differ from probabilities only by the width of a step."""
    model, side = a_model(PAIR), 120
    quantile = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side)
    drawn = model.sample(torch.cartesian_prod(quantile, quantile)).flatten(1).long() @ torch.tensor([3, 1])
    share = torch.bincount(drawn, minlength=9) / side**2
    expected = model.log_prob(every_example(PAIR), NONE.expand(9, 0)).exp()
    assert float((share - expected).abs().max()) < 2 / side
    assert float(expected.min()) > 4 / side, "every image is drawn"


def test_a_sample_is_the_quantile_that_its_noise_selects() -> None:
    """For each value in order: P(below the drawn level) <= Phi(noise) < P(up to the drawn level)."""
    model = a_model(IMAGE)
    noise = standard_normal((20, model.sample_noise), 1).double()
    x_BHV = model._in_order(model.sample(noise))
    below_BLHV = model._logits(x_BHV, None).softmax(1).cumsum(1)
    upto = below_BLHV.gather(1, x_BHV.long().unsqueeze(1)).squeeze(1)
    share = torch.special.ndtr(noise).view_as(upto)
    probability = model._logits(x_BHV, None).softmax(1).gather(1, x_BHV.long().unsqueeze(1)).squeeze(1)
    assert bool(((upto - probability) <= share + 1e-12).all() and (share <= upto + 1e-12).all())


@pytest.mark.parametrize("reach", [1, 2])
def test_a_value_depends_on_all_earlier_values_and_on_nothing_else(reach: int) -> None:
    """From the gradient of the logits of each value. Three layers of reach 1 span a row of IMAGE except distant corners."""
    spec = DataSpec(shape=(1, 4, 4), levels=17)
    model = a_model(spec, SMALL.model_copy(update={"reach": reach, "layers": 4}))
    x_BHV = model._in_order(examples(spec, 1)).double().requires_grad_(True)
    logits_LD = model._logits(x_BHV, None)[0].flatten(1)
    for place in range(spec.dims):
        (gradient,) = torch.autograd.grad(logits_LD[:, place].square().sum(), x_BHV, retain_graph=True)
        seen = gradient.flatten().abs() > 0
        assert seen.tolist() == [before < place for before in range(spec.dims)], f"value {place}"


def test_training_starts_from_the_frequencies_of_the_training_split() -> None:
    x = examples(PAIR, 500)
    model = build(SMALL, PAIR).double().eval()
    model.initialise(x)
    for parameter in model.parameters():
        parameter.data.zero_()
    count = torch.stack([(x.flatten(1) == level).sum(0) for level in range(3)]).double() + 1
    share = count / count.sum(0)
    expected = share[:, 0].outer(share[:, 1]).flatten()
    torch.testing.assert_close(model.log_prob(every_example(PAIR), NONE.expand(9, 0)).exp(), expected)


def test_the_loss_is_bits_per_dimension() -> None:
    model = a_model(IMAGE)
    batch = make_batch(Likelihood(model), IMAGE)
    bits = -model.log_prob(batch.x_BX, batch.noise_BN) / (IMAGE.dims * torch.log(torch.tensor(2.0, dtype=torch.float64)))
    torch.testing.assert_close(Likelihood(model)(batch), bits.mean())


def test_tables_and_missing_labels_are_refused() -> None:
    with pytest.raises(SettingsError, match="family 'pixelcnn' needs images"):
        build(SMALL, MIXED)
    with pytest.raises(SettingsError, match="conditional: true needs labels"):
        build(SMALL.model_copy(update={"conditional": True}), PAIR)
    assert labels(PAIR, 3) is None


PAGE = (REPOSITORY / "docs/how-to/add-a-family.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_the_page_shows_the_whole_file_in_order() -> None:
    *parts, cases = blocks("python")
    assert [line for part in parts for line in lines(part)] == lines((EXAMPLE / "family.py").read_text())
    assert blocks("toml") == [(EXAMPLE / "pyproject.toml").read_text()]
    assert cases in (REPOSITORY / "tests/support/models_cases.py").read_text()


def test_the_pipeline_on_the_page_is_valid() -> None:
    content = read_params(REPOSITORY)
    (pipeline,) = blocks("yaml")
    content["pipelines"] = YAML(typ="safe").load(pipeline)
    assert validate_params(content).pipeline("digits-pixelcnn").metrics() == ["nll", "fd_domain"]
