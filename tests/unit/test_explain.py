"""Contributions of pixels and columns to a score, against their closed form, and their pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
import torch
from PIL import Image

from remint.data import rows
from remint.errors import SettingsError
from remint.models.scores import NEAR, Scorer
from remint.records import DataSpec
from remint.serving.anomalies import explain, scoring
from tests.support.calibrated_cases import calibrated_model, split_of
from tests.support.models_cases import CASES, MIXED


@pytest.mark.parametrize("name", ["flow-affine-table", "vae"])
def test_contributions_to_the_distance_of_one_neighbour(name: str) -> None:
    """With one reference example r the score is |x - r|, and without part j it is (|x - r|^2 - (x_j - r_j)^2)^1/2."""
    case = CASES[name]
    x, near = (split_of(case, 1, seed).x_NX for seed in (1, 2))
    scorer = Scorer(case.build(), case.spec, {NEAR: torch.from_numpy(near)})
    found = explain.contributions(scorer, "neighbours", x[0])
    square = (scorer.features(torch.from_numpy(x)) - scorer.features(torch.from_numpy(near))).square().numpy()[0]
    square = square if case.spec.is_table else square.reshape(case.spec.image).sum(0)
    expected = np.sqrt(square.sum()) - np.sqrt(square.sum() - square)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_part_that_equals_its_neighbour_contributes_nothing() -> None:
    """Also to a score with noise: all variants of an example have the same noise."""
    case = CASES["vae"]
    model = calibrated_model(case)
    assert model.calibration is not None
    scorer = scoring.scorer_of(model, model.calibration(), "likelihood")
    x = scorer.reference[NEAR][7].numpy()
    np.testing.assert_allclose(explain.contributions(scorer, "likelihood", x), np.zeros((3, 4)), atol=1e-9)


def test_large_images_are_divided_into_patches() -> None:
    place, shape = explain.parts(DataSpec(shape=(3, 40, 70), levels=256))
    assert shape == (14, 24) and place.shape == (3, 40, 70) and set(np.unique(place)) == set(range(14 * 24))
    assert (place[0, :3, :3] == 0).all() and place[2, 0, 3] == 1 and place[1, 3, 0] == 24


@pytest.mark.parametrize("name", ["vae", "vae-table"])
def test_scores_and_contributions_are_written(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    model, x = calibrated_model(case), split_of(case, 11, 9).x_NX
    data = rows.to_table(MIXED, x) if case.spec.is_table else x
    summary = scoring.write(model, data, tmp_path / "s.csv", 0.2, None, explain=tmp_path / "why.png")
    written = pyarrow.csv.read_csv(tmp_path / "s.csv")
    assert written.column_names == ["name", "score", "p_value", "flagged"] and len(written) == summary.count == 11
    found = model.score(data, 0.2)
    np.testing.assert_array_equal(written["score"], found.score)
    np.testing.assert_array_equal(written["flagged"], found.flagged)
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.size[0] > 500 and np.asarray(picture).std() > 1


def test_other_files_are_refused_before_anything_is_scored(tmp_path: Path) -> None:
    case = CASES["vae"]
    model, x = calibrated_model(case), split_of(case, 3, 9).x_NX
    with pytest.raises(SettingsError, match=r"s.npy: the result is a table: give a name that ends in .csv or .parquet"):
        scoring.write(model, x, tmp_path / "s.npy", 0.05, None)
    with pytest.raises(SettingsError, match=r"is a picture: give a name that ends in .png"):
        scoring.write(model, x, tmp_path / "s.csv", 0.05, None, explain=tmp_path / "why.pdf")
    assert not list(tmp_path.iterdir())
