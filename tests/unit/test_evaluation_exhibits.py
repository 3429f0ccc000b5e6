"""Nearest neighbours and failures against worked examples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from remint.data.arrays import Dataset, Split
from remint.evaluation import exhibits, pairs
from remint.evaluation.context import judged_examples
from remint.records import Column, DatasetVersion, DataSpec

IMAGES = DataSpec(shape=(1, 4, 4), levels=17)
TABLE = DataSpec(shape=(3,), columns=(Column(name="a"), Column(name="b", missing=True), Column(name="c", categories=("x", "y"))))


def dataset(spec: DataSpec, train_NX: np.ndarray[Any, Any], held_NX: np.ndarray[Any, Any], y_N: Any = None) -> Dataset:
    version = DatasetVersion(name="t", source="t", raw_sha256="", spec=spec, split={}, counts={}, files={})
    return Dataset(version, Split(train_NX, None), Split(held_NX, None), Split(held_NX, y_N))


def images(count: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(17, size=(count, 1, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize("block", [2048, 7, 1])
def test_the_nearest_image_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(pairs, "BLOCK", block)
    train_NX, sample_NX, held_NX = images(50, 0), images(20, 1), images(30, 2)
    sample_NX[3] = train_NX[31]
    found = exhibits.nearest(sample_NX, dataset(IMAGES, train_NX, held_NX))
    apart_NM = (sample_NX[:16, None].astype(float) - train_NX[None].astype(float)).reshape(16, 50, 16)
    distance_NM = np.sqrt((apart_NM**2).mean(axis=2))
    np.testing.assert_array_equal(found["near_NX"], train_NX[distance_NM.argmin(axis=1)])
    np.testing.assert_allclose(found["distance_N"], distance_NM.min(axis=1), rtol=1e-12)
    assert found["distance_N"][3] == 0.0, "a copy is at distance 0, exactly"
    assert found["real_M"].shape == (30,) and (found["real_M"] > 0).all()


def test_nearest_rows_count_numbers_and_categories() -> None:
    train_ND = np.array([[0.0, 0.0, 0.0], [0.0, 3.0, 1.0], [5.0, np.nan, 0.0]], dtype=np.float32)
    sample_ND = np.array([[0.0, 3.0, 0.0], [5.0, 0.0, 0.0]], dtype=np.float32)
    found = exhibits.nearest(sample_ND, dataset(TABLE, train_ND, sample_ND))
    np.testing.assert_allclose(found["distance_N"], [2**0.5, 1.0])  # because of another category; because of a missing value
    np.testing.assert_array_equal(found["near_NX"], train_ND[[1, 2]])


def test_failures_come_worst_first_with_their_labels() -> None:
    held_NX, value_N = images(30, 3), np.random.default_rng(4).permutation(30).astype(float)
    values = {"fd_domain": np.zeros(20), "iwae": value_N, "elbo": value_N[::-1]}
    failed = exhibits.failures(values, object(), dataset(IMAGES, images(9, 5), held_NX, np.arange(30)), 0)
    assert failed is not None and str(failed["metric"]) == "iwae"
    np.testing.assert_array_equal(failed["value_N"], np.arange(29.0, 13.0, -1.0))
    np.testing.assert_array_equal(value_N[failed["place_N"]], failed["value_N"])
    np.testing.assert_array_equal(failed["x_NX"], held_NX[failed["place_N"]])
    np.testing.assert_array_equal(failed["y_N"], failed["place_N"])


def test_failures_of_some_judged_examples_are_those_examples() -> None:
    """The values are of 12 of 30 held-out examples, which the seed chooses."""
    held_NX, value_N = images(30, 3), np.random.default_rng(4).permutation(12).astype(float)
    failed = exhibits.failures({"nll": value_N}, object(), dataset(IMAGES, images(9, 5), held_NX, np.arange(30)), 7)
    assert failed is not None
    judged_N = judged_examples(30, 12, 7)
    np.testing.assert_array_equal(value_N[failed["row_N"]], np.arange(11.0, -1.0, -1.0))
    np.testing.assert_array_equal(failed["place_N"], judged_N[failed["row_N"]])
    np.testing.assert_array_equal(failed["x_NX"], held_NX[failed["place_N"]])
    np.testing.assert_array_equal(failed["y_N"], failed["place_N"])


def test_without_a_likelihood_uncovered_examples_are_the_failures() -> None:
    import torch

    blank = np.zeros((1, 4, 4), dtype=np.uint8)
    held_NX = np.stack([np.full((1, 4, 4), level, dtype=np.uint8) for level in range(17)])
    model = SimpleNamespace(sample_noise=2, sample=lambda noise_BN, y_B=None: torch.zeros((len(noise_BN), 1, 4, 4)).byte())
    failed = exhibits.failures({"fd_domain": np.zeros(20)}, model, dataset(IMAGES, blank[None], held_NX), 0)
    assert failed is not None and str(failed["metric"]) == "uncovered" and "y_N" not in failed
    np.testing.assert_array_equal(failed["all_M"], np.arange(17.0))  # for a model of blank images the distance is the brightness
    np.testing.assert_array_equal(failed["value_N"], np.arange(16.0, 0.0, -1.0))
    assert exhibits.failures({}, object(), dataset(IMAGES, blank[None], held_NX), 0) is None
