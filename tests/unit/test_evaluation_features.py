"""The extractor: reproducible, independent of the batch size, and refused if a byte changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from remint.data.arrays import Dataset, Split
from remint.errors import IntegrityError
from remint.evaluation import features
from remint.records import DatasetVersion, DataSpec

pytestmark = pytest.mark.usefixtures("one_thread")


def without_labels(dataset: Dataset) -> Dataset:
    return replace(dataset, train=replace(dataset.train, y_N=None))


def test_training_the_classifier_twice_gives_the_same_weights(digits: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = features.fit(digits, tmp_path / "first")
    torch.manual_seed(2)
    second = features.fit(digits, tmp_path / "second")
    assert first == second and first["kind"] == "classifier" and first["features"] == 64
    assert first["accuracy"]["held_out"] > 0.95
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)
    extractor = features.load(tmp_path / "first")
    assert extractor.sha256 == first["sha256"]
    f_ND = extractor(digits.held_out.x_NX)
    assert f_ND.shape == (len(digits.held_out), 64) and f_ND.dtype == np.float64


def test_the_result_does_not_depend_on_the_batch_size(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "STEPS", 3)
    features.fit(digits, tmp_path)
    extractor = features.load(tmp_path)
    whole = extractor(digits.held_out.x_NX)
    one_by_one = np.concatenate([extractor(x_CHW[None]) for x_CHW in digits.held_out.x_NX[:40]])
    np.testing.assert_allclose(one_by_one, whole[:40], rtol=1e-12, atol=1e-12)


def test_data_without_labels_get_principal_components(digits: Dataset, tmp_path: Path) -> None:
    from sklearn.decomposition import PCA

    about = features.fit(without_labels(digits), tmp_path)
    assert about["kind"] == "principal_components" and about["features"] == 64 and "accuracy" not in about
    f_ND = features.load(tmp_path)(digits.train.x_NX)
    x_NP = np.array(digits.train.x_NX, dtype=np.float64).reshape(-1, 64) / 8.0 - 1.0
    expected = PCA(svd_solver="full").fit_transform(x_NP)
    np.testing.assert_allclose(f_ND.var(axis=0, ddof=1), expected.var(axis=0, ddof=1), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(np.abs(f_ND[:, :20]), np.abs(expected[:, :20]), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 9, 5), (3, 32, 32), (1, 28, 28)])
@pytest.mark.parametrize("labelled", [True, False])
def test_other_shapes_and_few_images_have_finite_features(
    shape: tuple[int, int, int], labelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "STEPS", 2)
    generator = np.random.default_rng(0)
    split = Split(generator.integers(7, size=(20, *shape), dtype=np.uint8), generator.integers(4, size=20) if labelled else None)
    spec = DataSpec(shape=shape, levels=7, classes=4 if labelled else 0)
    version = DatasetVersion(name="x", source="x.npz", raw_sha256="", spec=spec, split={}, counts={}, files={})
    features.fit(Dataset(version, split, split, split), tmp_path)
    f_ND = features.load(tmp_path)(split.x_NX)
    assert f_ND.shape == (20, 64 if labelled else min(20, spec.dims)) and np.isfinite(f_ND).all()


def test_a_damaged_extractor_is_refused(digits: Dataset, tmp_path: Path) -> None:
    features.fit(without_labels(digits), tmp_path)
    weights = tmp_path / "extractor.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 4
    weights.write_bytes(damaged)
    with pytest.raises(IntegrityError, match="is damaged"):
        features.load(tmp_path)
    weights.unlink()
    with pytest.raises(IntegrityError, match="no readable extractor"):
        features.load(tmp_path)
