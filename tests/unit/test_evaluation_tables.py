"""Tables and classes: rows of a known distribution, features of columns, metrics and samples for each class."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from remint.data import rows
from remint.data.arrays import Dataset, Split
from remint.errors import RunError, SettingsError
from remint.evaluation import distance, features, likelihood, plots
from remint.evaluation.context import EvaluationContext, Measurement, samples
from remint.evaluation.evaluate import measure
from remint.models.contract import Model
from remint.records import Column, DatasetVersion, DataSpec
from remint.serving.model import ServedModel
from remint.settings.judging import EvaluationSettings

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS = (
    Column(name="length", mean=10.0, scale=2.0),
    Column(name="width", mean=-1.0, scale=0.5, missing=True),
    Column(name="colour", categories=("blue", "green", "red")),
)
SPEC = DataSpec(shape=(3,), columns=COLUMNS, classes=2, class_names=("no", "yes"))
SHARES = np.array([0.2, 0.3, 0.5])


def split(count: int, seed: int) -> Split:
    """Make rows: normal columns shifted by the class, with a third of ``width`` missing, and a categorical column."""
    generator = np.random.default_rng(seed)
    y_N = generator.integers(2, size=count)
    x_ND = np.stack([generator.normal(size=count) + y_N, generator.normal(size=count), generator.choice(3, count, p=SHARES)], 1)
    x_ND[generator.random(count) < 1 / 3, 1] = np.nan
    return Split(x_ND.astype(np.float32), y_N)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    parts = {
        name: split(count, seed) for seed, (name, count) in enumerate([("train", 3000), ("validation", 50), ("held_out", 400)])
    }
    counts = {name: len(part) for name, part in parts.items()}
    facts = {"name": "rows", "source": "rows.csv", "raw_sha256": "", "split": {}, "files": {}}
    dataset = Dataset(version=DatasetVersion(spec=SPEC, counts=counts, **facts), **parts)
    folder = tmp_path_factory.mktemp("rows") / "features"
    features.fit(dataset, folder)
    return EvaluationContext(dataset, {"domain": features.load(folder)}, EvaluationSettings(samples=300, draws=6))


class Law(Model):
    """True distribution of the rows given the class; a missing ``width`` adds nothing to the likelihood."""

    conditional = True
    density_noise = 0
    sample_noise = 4  # the last number draws the class

    def classes(self, noise_BN: Tensor) -> Tensor:
        return (noise_BN[:, 3] > 0).long()

    def log_prob(self, x_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        assert y_B is not None and noise_BN.shape == (len(x_BX), 0)
        length, width, colour = x_BX.double().numpy().T
        log_p = stats.norm.logpdf(length - y_B.numpy()) + np.nan_to_num(stats.norm.logpdf(width))
        return torch.from_numpy(log_p + np.log(SHARES)[colour.astype(int)])

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        y_B = self.classes(noise_BN) if y_B is None else y_B
        colour_B = (torch.special.ndtr(noise_BN[:, 2]).unsqueeze(1) > torch.tensor([0.2, 0.5])).sum(1)
        return torch.stack([noise_BN[:, 0] + y_B, noise_BN[:, 1], colour_B.float()], dim=1)


def run(model: object, metric: str, context: EvaluationContext) -> Measurement:
    return measure(model, [metric], context, "rows-test")[0][metric]


def test_nll_given_the_class_is_in_nats_and_reported_for_each_class(context: EvaluationContext) -> None:
    found = run(Law(), "nll", context)
    x_ND, y_N = context.dataset.held_out.x_NX, context.dataset.held_out.y_N
    assert y_N is not None
    expected_N = -Law().log_prob(torch.from_numpy(x_ND), torch.zeros(len(x_ND), 0), torch.from_numpy(y_N)).numpy()
    np.testing.assert_array_equal(found.values_N, expected_N)
    entropy = (1 + 2 / 3) * 0.5 * math.log(2 * math.pi * math.e) - float(SHARES @ np.log(SHARES))
    assert found.low < entropy < found.high, "the law's own entropy, of the observed columns"
    assert found.fingerprint["given"] == "class" and found.fingerprint["dequantisation"] == "none"
    assert {y: value.n for y, value in found.by_class.items()} == {0: int((y_N == 0).sum()), 1: int((y_N == 1).sum())}
    assert found.by_class[1].values_N.mean() == expected_N[y_N == 1].mean()


def test_the_factorised_baseline_has_normal_and_categorical_columns(context: EvaluationContext) -> None:
    train, held_out = (np.array(part.x_NX, dtype=np.float64) for part in (context.dataset.train, context.dataset.held_out))
    counts = np.bincount(train[:, 2].astype(int), minlength=3) + 1.0
    expected_N = -np.log(counts / counts.sum())[held_out[:, 2].astype(int)]
    for place in (0, 1):
        law = stats.norm(np.nanmean(train[:, place]), np.nanstd(train[:, place]))
        expected_N -= np.nan_to_num(law.logpdf(held_out[:, place]))
    np.testing.assert_allclose(likelihood.independent_baseline(context).values_N, expected_N, rtol=1e-12)


def test_features_of_a_table_are_its_standardised_columns(context: EvaluationContext) -> None:
    f_ND = context.extractors["domain"](context.dataset.train.x_NX)
    assert f_ND.shape == (3000, 1 + 2 + 3), "a number; a number and whether it is missing; three categories"
    np.testing.assert_allclose(f_ND.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(f_ND.std(0), 1, atol=1e-5)
    assert context.extractors["domain"].classify is None


def test_a_perfect_table_model_scores_near_the_floor_and_a_shifted_one_does_not(context: EvaluationContext) -> None:
    class Shifted(Law):
        def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
            return super().sample(noise_BN, y_B) + torch.tensor([1.0, 0.0, 0.0])

    observed = replace(context.dataset, **{name: _complete(getattr(context.dataset, name)) for name in ("train", "held_out")})
    complete = replace(context, dataset=observed)
    floor = distance.real_data_floor("domain", complete).values_N.mean()
    own, shifted = (run(model, "fd_domain", complete).values_N.mean() for model in (Law(), Shifted()))
    assert own < 3 * floor < shifted, (floor, own, shifted)


def _complete(part: Split) -> Split:
    kept_N = np.isfinite(part.x_NX).all(1)
    assert part.y_N is not None
    return Split(part.x_NX[kept_N], part.y_N[kept_N])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: torch.where(x > 2, math.nan, x), "column 'length' has 18 of 200 values that are not finite"),
        (lambda x: x + torch.tensor([0.0, 0.0, 1.0]), "column 'colour' has values that are not indices of its 3 categories"),
        (lambda x: x.double(), "float64"),
        (lambda x: x[:, :2], r"\(2,\)"),
    ],
)
def test_invalid_rows_are_refused(context: EvaluationContext, spoil: object, words: str) -> None:
    class Spoiled(Law):
        def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
            rows: Tensor = spoil(super().sample(noise_BN, y_B))  # type: ignore[operator]
            return rows

    with pytest.raises(RunError, match=words):
        samples(Spoiled(), SPEC, 200, 0)


class ByClass(Model):
    """Model that draws training images of the requested class, or of the class plus ``off``."""

    conditional = True
    sample_noise = 1

    def __init__(self, dataset: Dataset, off: int = 0) -> None:
        super().__init__()
        self.split, self.off = dataset.train, off

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        assert y_B is not None and self.split.y_N is not None
        y_N = np.array(self.split.y_N)
        chosen = []
        for share, y in zip(torch.special.ndtr(noise_BN[:, 0]).tolist(), y_B.tolist(), strict=True):
            places = np.flatnonzero(y_N == (y + self.off) % 10)
            chosen.append(places[int(share * len(places))])
        return torch.from_numpy(np.array(self.split.x_NX[chosen]))


def test_class_agreement_is_the_share_of_samples_of_the_requested_class(digits: Dataset, tmp_path: Path) -> None:
    features.fit(digits, tmp_path / "features")
    context = EvaluationContext(
        digits, {"domain": features.load(tmp_path / "features")}, EvaluationSettings(samples=200, draws=3)
    )
    right = run(ByClass(digits), "class_agreement", context)
    assert right.values_N.mean() > 0.97 and right.n == 200
    assert {y: value.n for y, value in right.by_class.items()} == dict.fromkeys(range(10), 20)
    assert np.mean([value.values_N.mean() for value in right.by_class.values()]) == pytest.approx(right.values_N.mean())
    assert run(ByClass(digits, off=1), "class_agreement", context).values_N.mean() < 0.05


def test_class_agreement_needs_a_conditional_model_and_a_classifier(context: EvaluationContext, digits: Dataset) -> None:
    unconditional = Law()
    unconditional.conditional = False
    with pytest.raises(SettingsError, match="conditional: true"):
        run(unconditional, "class_agreement", context)
    with pytest.raises(SettingsError, match="needs images with labels"):
        run(Law(), "class_agreement", context)


def test_a_served_table_comes_in_original_units_and_by_class(tmp_path: Path) -> None:
    served = ServedModel(Law(), SPEC)
    places = [(1, index) for index in range(100)]
    x_ND, y_N = served.draw(places, [served.class_named("yes")] * 100)
    np.testing.assert_allclose(served.draw(places, [0] * 100)[0][:, 0] + 1, x_ND[:, 0], atol=1e-6)
    frame = served.sample(70, seed=1, of_class="yes")
    assert frame.equals(served.sample(100, seed=1, of_class=1)[:70])
    rows.write(tmp_path / "rows.csv", served.table(x_ND, y_N), SPEC)
    with (tmp_path / "rows.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [float(row["length"]) for row in read] == (x_ND[:, 0].astype(np.float64) * 2 + 10).tolist()
    assert [row["colour"] for row in read] == [("blue", "green", "red")[int(place)] for place in x_ND[:, 2]]
    assert frame["length"].tolist() == [float(row["length"]) for row in read[:70]]


def test_an_unknown_class_and_a_class_of_an_unconditional_model_are_refused() -> None:
    with pytest.raises(SettingsError, match="unknown class 'yess': the model knows no, yes"):
        ServedModel(Law(), SPEC).class_named("yess")
    plain = Law()
    plain.conditional = False
    with pytest.raises(SettingsError, match="not trained with model.conditional"):
        ServedModel(plain, SPEC).sample(3, seed=0, of_class=1)


def test_tables_and_classes_have_pictures(context: EvaluationContext, tmp_path: Path) -> None:
    drawn = {"law": samples(Law(), SPEC, 200, 0)}
    for name in ("first", "second"):
        plots.table_columns(tmp_path / f"{name}.png", context.dataset.held_out.x_NX, drawn, COLUMNS, "rows")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
