"""Synthetic examples for scarce classes: their number, form and origin, and the models that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from remint.errors import RemintError, SettingsError, UserError
from remint.models.contract import Model
from remint.records import Column, DataSpec, MetricValue
from remint.runtime import manifest
from remint.serving import inputs, outputs
from remint.serving.augmentation import augmenting, benefit
from remint.serving.augmentation.augmenting import Counts, augment
from remint.serving.model import ServedModel

Array = np.ndarray[Any, Any]

PICTURES = DataSpec(shape=(1, 4, 4), levels=5, classes=3, class_names=("cat", "dog", "emu"))
LABEL = Column(name="kind", categories=("cat", "dog", "emu"))
ROWS = DataSpec(
    shape=(2,),
    columns=(Column(name="a", mean=3.0, scale=2.0), Column(name="b")),
    classes=3,
    class_names=LABEL.categories,
    label=LABEL,
)
GIVEN = np.array([0] * 30 + [1] * 12 + [2] * 4)


class Blobs(Model):
    """A model of known data: examples of a class are scattered around the class's place. ``moved``: draws the next class."""

    conditional = True

    def __init__(self, spec: DataSpec, moved: int = 0) -> None:
        super().__init__()
        self.spec, self.moved, self.sample_noise, self.unused = spec, moved, spec.dims, nn.Linear(1, 1)

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        assert y_B is not None
        place_B1 = ((y_B + self.moved) % 3).unsqueeze(1).float()
        if self.spec.is_table:
            return 2.0 * place_B1 + noise_BN
        return (2.0 * place_B1 + noise_BN).round().clamp(0, 4).to(torch.uint8).view(-1, *self.spec.shape)


class Copies(Blobs):
    """A model that draws the given examples."""

    def __init__(self, spec: DataSpec, given: Array) -> None:
        super().__init__(spec)
        self.given = torch.from_numpy(given)

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        return self.given[(1000 * noise_BN[:, 0].abs()).long() % len(self.given)]


def served(spec: DataSpec, model: Model | None = None) -> ServedModel:
    return ServedModel((model or Blobs(spec)).eval(), spec, ref="m/1", weights_sha256="a" * 64)


def given(spec: DataSpec, seed: int = 99) -> Array:
    return served(spec).draw([(seed, index) for index in range(len(GIVEN))], GIVEN.tolist())[0]


def written(spec: DataSpec, path: Path) -> Path:
    outputs.write_examples(path, spec, [(given(spec), GIVEN)], len(GIVEN))
    return path


NUMBERED = PICTURES.model_copy(update={"class_names": ()})  # numbers in an .npz file have no names
FORMS = {"folder": (PICTURES, ""), "npz": (NUMBERED, ".npz"), "csv": (ROWS, ".csv"), "parquet": (ROWS, ".parquet")}


@pytest.mark.parametrize("form", FORMS)
def test_scarce_classes_are_filled_up_in_the_format_of_the_input(form: str, tmp_path: Path) -> None:
    spec, suffix = FORMS[form]
    data, model = written(spec, tmp_path / f"data{suffix}"), served(spec)
    made = model.augment(str(data), tmp_path / "augmented", per_class=20, seed=3)
    names = spec.class_names or ("0", "1", "2")
    numbers = zip((30, 12, 4), (0, 8, 16), strict=True)
    assert made.counts == {name: Counts(given=n, synthetic=more) for name, (n, more) in zip(names, numbers, strict=True)}
    with inputs.read(spec, tmp_path / f"augmented/examples{suffix}") as examples:
        x_NX = np.concatenate(list(examples.x_NX))
        assert examples.y_N is not None
        assert np.bincount(examples.y_N, minlength=3).tolist() == [0, 8, 16]
        for y, count in ((1, 8), (2, 16)):
            expected_NX = model.draw([(3, index) for index in range(count)], [y] * count)[0]
            np.testing.assert_allclose(x_NX[examples.y_N == y], expected_NX, rtol=1e-6, atol=1e-6)


def test_the_manifest_says_where_the_examples_come_from(tmp_path: Path) -> None:
    data = written(PICTURES, tmp_path / "data")
    made = augment(served(PICTURES), str(data), tmp_path / "a", per_class=20)
    sealed = manifest.verify(tmp_path / "a")
    assert sealed == json.loads((tmp_path / "a/manifest.json").read_text())
    assert {key: sealed[key] for key in ("model", "weights_sha256", "seed", "per_class")} == {
        "model": "m/1",
        "weights_sha256": "a" * 64,
        "seed": 0,
        "per_class": 20,
    }
    assert sealed["counts"]["emu"] == {"given": 4, "synthetic": 16}
    assert sealed["input_sha256"] == manifest.sha256_tree(data)
    assert (len(sealed["files"]), "path" in sealed, made.synthetic) == (24, False, 24)
    augment(served(PICTURES), str(data), tmp_path / "b", per_class=20)
    assert manifest.sha256_tree(tmp_path / "a") == manifest.sha256_tree(tmp_path / "b"), "it holds no time and no path"


def refused(match: str, kind: type[RemintError], model: ServedModel, data: Any, output: Path, per_class: int = 20) -> None:
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(kind, match=match):
        augment(model, data, output, per_class)
    assert sorted(output.parent.rglob("*")) == before, "nothing is written"


def test_input_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, output = str(written(PICTURES, tmp_path / "data")), tmp_path / "augmented"
    model = served(PICTURES)
    unconditional = served(PICTURES)
    unconditional.model.conditional = False
    refused("m/1 does not know the classes: augment needs a model .* conditional: true", UserError, unconditional, data, output)
    refused("the input has no classes", SettingsError, model, given(PICTURES), output)
    refused("--per-class 4: each class has 4 examples or more", SettingsError, model, data, output, per_class=4)
    refused("it exists: name a new folder", SettingsError, model, data, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("/dev/full")
    refused("it exists: name a new folder", SettingsError, model, data, Path())
    refused("it exists: name a new folder", SettingsError, model, data, tmp_path / "link")
    refused("the folder .* does not exist", SettingsError, model, data, tmp_path / "none/augmented")


@pytest.mark.parametrize("spec", [PICTURES, ROWS], ids=["pictures", "rows"])
def test_a_model_that_copies_is_refused(spec: DataSpec, tmp_path: Path) -> None:
    data = str(written(spec, tmp_path / ("data" + (".csv" if spec.is_table else ""))))
    copying = served(spec, Copies(spec, given(spec)))
    refused(
        "m/1 copies: the novelty of its samples against the input is 0.00, below 0.5", UserError, copying, data, tmp_path / "a"
    )
    made = augment(served(spec), data, tmp_path / "b", per_class=20)
    assert made.novelty is not None and made.novelty.of == "the input" and 0.8 < made.novelty.value < 1.3


def test_the_novelty_of_the_evaluation_counts_where_it_was_measured(tmp_path: Path) -> None:
    data = str(written(ROWS, tmp_path / "data.csv"))
    measured = MetricValue(name="novelty", value=0.31, low=0.3, high=0.32, n=9, seed=0, better="higher")
    low = replace(served(ROWS), metrics={"novelty": measured})
    refused("novelty of its samples against the training split is 0.31", UserError, low, data, tmp_path / "a")
    high = replace(low, metrics={"novelty": measured.model_copy(update={"value": 0.9})})
    assert augment(high, data, tmp_path / "b", per_class=20).novelty == augmenting.Novelty(value=0.9, of="the training split")


def test_novelty_is_the_distance_to_the_nearest_relative_to_that_of_other_examples() -> None:
    """Given 0, 1, 3 and drawn 0.5: the others are 1, 1, 2 away and the sample 0.5."""
    line = DataSpec(shape=(1,), columns=(Column(name="a"),), classes=1)
    model = served(line, Copies(line, np.full((1, 1), 0.5, np.float32)))
    with inputs.read(line, np.array([[0.0], [1.0], [3.0]])) as examples:
        assert augmenting.input_novelty(model, examples, 0) == pytest.approx(0.5 / (4 / 3))
    with inputs.read(line, np.zeros((3, 1))) as examples:
        assert augmenting.input_novelty(model, examples, 0) is None, "all are equal: there is no usual distance"


def test_the_benefit_of_right_and_of_wrong_examples_is_reported(tmp_path: Path) -> None:
    """Examples of the right class help a class with few examples; examples of other classes harm."""
    few_N = np.array([0] * 60 + [1] * 60 + [2] * 5)
    x_ND = served(ROWS).draw([(7, index) for index in range(len(few_N))], few_N.tolist())[0]
    outputs.write_examples(tmp_path / "data.csv", ROWS, [(x_ND, few_N)], len(few_N))
    found = {}
    for name, model in {"right": served(ROWS), "wrong": served(ROWS, Blobs(ROWS, moved=1))}.items():
        made = augment(model, str(tmp_path / "data.csv"), tmp_path / name, per_class=60, evaluate=True)
        found[name] = {each.classifier: each for each in made.benefits}
        assert json.loads((tmp_path / name / "manifest.json").read_text())["benefits"][0]["seeds"] == benefit.SEEDS
    right, wrong = (found[name]["support vector machine"] for name in ("right", "wrong"))
    assert right.without == wrong.without
    assert right.augmented > right.without > wrong.augmented
    assert wrong.high < 0 and "it harms" in wrong.text() and "it harms" not in right.text()
    assert len(found["right"]) == 2


def test_a_benefit_needs_two_classes_with_two_examples(tmp_path: Path) -> None:
    outputs.write_examples(tmp_path / "data.csv", ROWS, [(given(ROWS)[:5], np.array([0, 0, 0, 1, 2]))], 5)
    with pytest.raises(UserError, match="too few classes with two examples or more"):
        augment(served(ROWS), str(tmp_path / "data.csv"), tmp_path / "a", per_class=4, evaluate=True)
    assert not (tmp_path / "a").exists()
