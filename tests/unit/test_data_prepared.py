"""Prepared data: every example is in one split, and a checksum covers every byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remint.data import arrays, sources, splits
from remint.data.arrays import ShardedArray
from remint.errors import DataError, IntegrityError
from remint.records import DatasetVersion
from remint.settings.dataset import DatasetSettings
from remint.settings.split import SplitSettings

DIGITS = DatasetSettings(source="sklearn:digits")


def prepare(folder: Path, settings: DatasetSettings = DIGITS) -> DatasetVersion:
    sources.snapshot("digits", settings, folder, folder / "raw")
    return splits.prepare("digits", settings, folder / "raw", folder / "prepared")


def test_each_example_is_in_one_split_with_its_label(tmp_path: Path) -> None:
    version, dataset = prepare(tmp_path), arrays.load(tmp_path / "prepared")
    assert dataset.version == version and version.spec.shape == (1, 8, 8) and version.spec.classes == 10
    splits = (dataset.train, dataset.validation, dataset.held_out)
    assert [len(split) for split in splits] == [version.counts[name] for name in arrays.SPLITS]
    with np.load(tmp_path / "raw/data.npz") as raw:
        whole = sorted(zip(map(bytes, raw["x"]), raw["y"].tolist(), strict=True))
    found = sorted((bytes(x), int(y)) for split in splits for x, y in zip(split.x_NX, split.y_N, strict=True))
    assert found == whole


def test_splits_have_about_the_requested_shares(tmp_path: Path) -> None:
    counts = prepare(tmp_path).counts
    # Binomial: three standard deviations of 1,797 examples.
    assert abs(counts["held_out"] - 359.4) < 3 * (1797 * 0.2 * 0.8) ** 0.5
    assert abs(counts["validation"] - 179.7) < 3 * (1797 * 0.1 * 0.9) ** 0.5


def test_equal_data_give_one_version_and_another_seed_gives_another(tmp_path: Path) -> None:
    first, second = prepare(tmp_path), prepare(tmp_path)
    other = prepare(tmp_path, DIGITS.model_copy(update={"split": SplitSettings(seed=1)}))
    assert first.digest == second.digest != other.digest
    assert first.files["held_out.npy"] != other.files["held_out.npy"]


def test_a_calibration_split_leaves_the_held_out_examples_where_they_are(tmp_path: Path) -> None:
    """The digests are those of a remint that had no such split."""
    before = prepare(tmp_path)
    assert before.digest == "b3dfb965e2f65b436ee6241e37917176796e28f93fbe9455851f0d63a8e801bc"
    after = prepare(tmp_path, DIGITS.model_copy(update={"split": SplitSettings(calibration=0.05)}))
    for name in ("validation", "validation_labels", "held_out", "held_out_labels"):
        assert after.files[f"{name}.npy"] == before.files[f"{name}.npy"]
    assert after.counts["train"] + after.counts["calibration"] == before.counts["train"]
    assert abs(after.counts["calibration"] - 89.85) < 3 * (1797 * 0.05 * 0.95) ** 0.5  # binomial: three standard deviations
    assert len(np.load(tmp_path / "prepared/calibration.npy")) == after.counts["calibration"]
    assert after.split["calibration"] == 0.05 and "calibration" not in before.split


def test_without_labels_no_label_files_are_written(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(256, size=(60, 4, 4)))
    version = prepare(tmp_path, DatasetSettings(source="a.npy"))
    assert version.spec.classes == 0 and set(version.files) == {"train.npy", "validation.npy", "held_out.npy"}
    assert arrays.load(tmp_path / "prepared").train.y_N is None


def test_labels_of_an_earlier_preparation_do_not_stay(tmp_path: Path) -> None:
    prepare(tmp_path)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(256, size=(60, 4, 4)))
    prepare(tmp_path, DatasetSettings(source="a.npy"))
    assert not list((tmp_path / "prepared").glob("*labels*"))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((100, 4, 4)))  # duplicates: all in one split
    with pytest.raises(DataError, match=r"datasets\.digits\.split: none of the 100 examples falls into \w+"):
        prepare(tmp_path, DatasetSettings(source="a.npy"))


@pytest.mark.parametrize("name", ["train.npy", "validation.npy", "held_out_labels.npy"])
def test_every_flipped_or_missing_byte_is_found(tmp_path: Path, name: str) -> None:
    prepare(tmp_path)
    path = tmp_path / "prepared" / name
    good = path.read_bytes()
    for position in np.random.default_rng(0).integers(len(good), size=10):
        damaged = bytearray(good)
        damaged[position] ^= 1 << int(position % 8)
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=name):
            arrays.load(tmp_path / "prepared")
    path.write_bytes(good[:-1])
    with pytest.raises(IntegrityError, match=name):
        arrays.load(tmp_path / "prepared")
    path.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        arrays.load(tmp_path / "prepared")


def test_a_folder_without_prepared_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"no readable dataset\.json"):
        arrays.load(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"no readable dataset\.json"):
        arrays.load(tmp_path)


def test_a_sharded_array_reads_as_numpy_does() -> None:
    x_NCHW = np.random.default_rng(0).integers(256, size=(23, 2, 3, 4), dtype=np.uint8)
    sharded = ShardedArray([x_NCHW[:7], x_NCHW[7:8], x_NCHW[8:]])
    assert (len(sharded), sharded.shape, sharded.dtype, sharded.ndim) == (23, (23, 2, 3, 4), np.uint8, 4)
    assert (sharded.size, sharded.nbytes) == (x_NCHW.size, x_NCHW.nbytes)
    mask_N = np.arange(23) % 3 == 0
    keys: list[Any] = [*(slice(start, stop) for start in range(-25, 26) for stop in (-30, -3, 0, 5, 7, 8, 23, 40)), slice(None)]
    keys += [slice(None, None, -2), slice(20, 2, -3), 0, 7, -1, np.int64(22), [3, 1, 22, 3, -23], [], mask_N, ~mask_N & mask_N]
    keys += [np.array([[8, 1], [22, 6]]), np.array([], np.int64), (slice(None), 1), (slice(4, 9), 0, slice(1, 3)), (5, 1)]
    keys += [([3, 9], slice(None), 2), (mask_N, 1), (slice(2, 20, 5), ..., 0), np.array([3, 9], np.int32)]
    for key in keys:
        expected = x_NCHW[np.array(key, np.int64) if isinstance(key, list) else key]
        np.testing.assert_array_equal(sharded[key], expected, err_msg=str(key), strict=not isinstance(expected, np.generic))
    np.testing.assert_array_equal(np.asarray(sharded), x_NCHW, strict=True)
    np.testing.assert_array_equal(np.array(sharded, dtype=np.float64), x_NCHW.astype(np.float64), strict=True)
    assert [bytes(x) for x in sharded] == [bytes(x) for x in x_NCHW]
    copy = sharded[np.arange(5)]
    copy[:] = 0
    assert not np.array_equal(sharded[:5], copy)
    for wrong in (23, [-24], np.array([0, 23])):
        with pytest.raises(IndexError, match="out of bounds"):
            sharded[wrong]
    with pytest.raises(ValueError, match="without a copy"):
        np.array(sharded, copy=False)


READS: dict[str, Callable[[ShardedArray], object]] = {
    "places": lambda x_NX: [x_NX[np.arange(at, 4096, 64)].sum() for at in range(64)],
    "blocks": lambda x_NX: [x_NX[at : at + 100].sum() for at in range(0, 4096, 100)],
    "examples": lambda x_NX: [x_X.sum() for x_X in x_NX],
}


@pytest.mark.parametrize("how", READS)
def test_what_was_read_does_not_stay_in_memory(how: str, tmp_path: Path) -> None:
    """16 MiB in four shards, of which less than one and a block may stay."""
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.ones((1024, 4096), np.uint8))
    sharded = ShardedArray([np.load(tmp_path / f"{number}.npy", mmap_mode="r") for number in range(4)])

    def mapped() -> int:
        return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "RssFile" in line)

    before = mapped()
    READS[how](sharded)
    assert mapped() - before < 5 * 1024
    np.testing.assert_array_equal(sharded[np.array([0, 4095])], np.ones((2, 4096), np.uint8))
