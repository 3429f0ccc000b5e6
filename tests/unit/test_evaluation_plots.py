"""Pictures: every pixel of a grid is in its place, and equal arrays give equal files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from remint.evaluation import drawing, plots
from remint.evaluation.report import read_curve
from remint.records import MetricValue

X_NCHW = np.random.default_rng(0).integers(17, size=(10, 1, 8, 8), dtype=np.uint8)


def value(at: float) -> MetricValue:
    return MetricValue(name="nll", value=at, low=at - 0.1, high=at + 0.1, n=360, seed=0, unit="bits/dim")


CURVE = {"step": [1.0, 2.0, 3.0], "loss": [3.0, float("nan"), 1.0], "validation": [2.0, 1.5, 1.7], "kl": [0.1, 0.2, 0.3]}
VALUE_N = np.random.default_rng(2).normal(2.0, 0.3, size=80)
PICTURES: dict[str, Callable[[Path], None]] = {
    "grid": lambda path: plots.sample_grid(path, X_NCHW, 17, title="ten digits"),
    "grid without a title": lambda path: plots.sample_grid(path, X_NCHW, 17),
    "one sample": lambda path: plots.sample_grid(path, X_NCHW[:1], 17),
    "colour": lambda path: plots.sample_grid(path, np.repeat(X_NCHW, 3, axis=1), 17),
    "comparison": lambda path: plots.comparison(path, X_NCHW, {"a": X_NCHW[:4], "b": X_NCHW}, 17),
    "curve": lambda path: plots.training_curve(path, CURVE, best_step=2, title="a: training"),
    "one step": lambda path: plots.training_curve(path, {"step": [1.0], "loss": [2.0]}, best_step=1),
    "curves": lambda path: plots.curves(path, {"a/2": (CURVE, 2), "a/1": (CURVE, 3)}),
    "likelihoods": lambda path: plots.likelihoods(path, value(2.0), {"a/2": VALUE_N, "a/1": VALUE_N[::-1] + 0.1}),
    "one likelihood": lambda path: plots.likelihoods(path, value(2.0), {"a": VALUE_N}),
    "equal likelihoods": lambda path: plots.likelihoods(path, value(2.0), {"a": np.ones(8), "b": np.ones(8)}),
    "neighbours": lambda path: plots.neighbours(path, X_NCHW, X_NCHW[::-1], np.arange(9.0), 17),
    "intervals": lambda path: plots.metric_intervals(path, {"nll": value(2.0), "elbo": value(2.1)}, {"nll": value(1.9)}),
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES.keys())
def test_equal_arrays_give_equal_files(tmp_path: Path, draw: Callable[[Path], None]) -> None:
    draw(tmp_path / "new folder" / "first.png")
    draw(tmp_path / "second.png")
    assert (tmp_path / "new folder" / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    picture = imread(tmp_path / "second.png")[:, :, :3]
    assert min(picture.shape[:2]) > 150 and picture.std() > 0.02, "the picture is blank"


def test_every_image_of_a_grid_is_in_its_place() -> None:
    sheet = drawing.tile(X_NCHW, 17, columns=4)
    assert sheet.shape == (3 * 9 + 1, 4 * 9 + 1, 3)
    for index, image_CHW in enumerate(X_NCHW):
        row, column = divmod(index, 4)
        found = sheet[1 + 9 * row : 9 + 9 * row, 1 + 9 * column : 9 + 9 * column]
        for channel in range(3):
            np.testing.assert_array_equal(found[:, :, channel], image_CHW[0] / 16)
    assert (sheet[19:, 19:] == 1).all(), "what holds no image is white"


def test_colours_are_kept_and_transparency_is_left_out() -> None:
    x_NCHW = np.random.default_rng(1).integers(256, size=(1, 4, 2, 3), dtype=np.uint8)
    np.testing.assert_array_equal(drawing.tile(x_NCHW, 256, 1)[1:3, 1:4], x_NCHW[0, :3].transpose(1, 2, 0) / 255)


def test_a_missing_value_of_a_curve_is_drawn_as_a_gap(tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text("step,loss,validation\n1,2.5,\n2,2.25,1.5\n")
    curve = read_curve(tmp_path / "curve.csv")
    assert curve["step"] == [1.0, 2.0] and curve["loss"] == [2.5, 2.25]
    assert np.isnan(curve["validation"][0]) and curve["validation"][1] == 1.5
