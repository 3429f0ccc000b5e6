"""IDX files: every image and label of every part is read exactly; a missing or extra byte is reported."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remint.data import sources
from remint.data.schema import Schema
from remint.errors import DataError
from remint.records import DataSpec
from remint.settings.dataset import DatasetSettings

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
PARTS = {"t10k": 7, "train": 20}  # images in each


def images(part: str) -> np.ndarray:
    return np.random.default_rng(PARTS[part]).integers(256, size=(PARTS[part], 6, 5), dtype=np.uint8)


def labels(part: str) -> np.ndarray:
    return np.arange(PARTS[part], dtype=np.uint8) % 4


def write(path: Path, x: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f">HBB{x.ndim}I", 0, 8, x.ndim, *x.shape) + x.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def folder(where: Path, end: str = "", dash: str = "-") -> Path:
    for part in PARTS:
        write(where / f"{part}-images{dash}idx3-ubyte{end}", images(part))
        write(where / f"{part}-labels{dash}idx1-ubyte{end}", labels(part))
    return where


def snapshot(where: Path, **settings: Any) -> tuple[dict[str, np.ndarray], DataSpec]:
    settings = {"source": "idx:mnist", **settings}
    sources.snapshot("mnist", DatasetSettings(**settings), where, where / "out")
    with np.load(where / "out/data.npz", allow_pickle=False) as archive:
        return dict(archive), Schema.read(where / "out/schema.json").spec


def refusal(where: Path) -> str:
    with pytest.raises(DataError) as caught:
        snapshot(where)
    assert "\n" not in str(caught.value) and "datasets.mnist.source" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("end", "dash"), [("", "-"), (".gz", "-"), ("", ".")])
def test_all_parts_are_pooled_with_their_labels(tmp_path: Path, end: str, dash: str) -> None:
    folder(tmp_path / "mnist", end, dash)
    arrays, spec = snapshot(tmp_path)
    np.testing.assert_array_equal(arrays["x"][:, 0], np.concatenate([images(part) for part in PARTS]))
    np.testing.assert_array_equal(arrays["y"], np.concatenate([labels(part) for part in PARTS]))
    assert spec == DataSpec(shape=(1, 6, 5), levels=256, classes=4)


def test_a_folder_is_recognised_by_its_files_and_may_be_fetched(tmp_path: Path) -> None:
    folder(tmp_path / "mnist", ".gz")
    expected = snapshot(tmp_path)[0]["x"]
    np.testing.assert_array_equal(snapshot(tmp_path, source="mnist")[0]["x"], expected)
    sources.snapshot("mnist", DatasetSettings(source="s3://b/p"), tmp_path, tmp_path / "s3", fetched=tmp_path / "mnist")
    assert (tmp_path / "s3/data.npz").read_bytes() == (tmp_path / "out/data.npz").read_bytes()


def test_files_without_labels_are_read(tmp_path: Path) -> None:
    write(tmp_path / "mnist/train-images-idx3-ubyte", images("train"))
    arrays, spec = snapshot(tmp_path)
    assert "y" not in arrays and spec.classes == 0


def test_images_are_padded_to_a_power_of_two(tmp_path: Path) -> None:
    folder(tmp_path / "mnist")
    x_NCHW = snapshot(tmp_path, resize={"size": [8, 8], "filter": "pad"})[0]["x"]
    np.testing.assert_array_equal(x_NCHW[:, :, 1:7, 1:6], snapshot(tmp_path)[0]["x"])
    assert x_NCHW.sum() == x_NCHW[:, :, 1:7, 1:6].sum()


@pytest.mark.parametrize("end", ["", ".gz"])
def test_every_truncation_and_every_extra_byte_is_refused(tmp_path: Path, end: str) -> None:
    path = folder(tmp_path / "mnist", end) / f"train-images-idx3-ubyte{end}"
    good = path.read_bytes()
    for length in np.linspace(0, len(good) - 1, 20).astype(int):
        path.write_bytes(good[:length])
        assert f"train-images-idx3-ubyte{end} " in refusal(tmp_path)
    plain = gzip.decompress(good) if end else good
    path.write_bytes(gzip.compress(plain + b"x") if end else plain + b"x")
    assert "holds more than the 600 bytes given in its header" in refusal(tmp_path)


def test_missing_or_mismatched_parts_are_refused(tmp_path: Path) -> None:
    mnist = folder(tmp_path / "mnist")
    write(mnist / "train-labels-idx1-ubyte", labels("t10k"))
    assert "train-labels-idx1-ubyte has 7 labels for 20 images" in refusal(tmp_path)
    (mnist / "train-labels-idx1-ubyte").unlink()
    assert "train-images-idx3-ubyte has no labels, but other parts have" in refusal(tmp_path)
    write(mnist / "train-labels-idx1-ubyte", labels("train"))
    write(mnist / "train-labels-idx1-ubyte.gz", labels("train"))
    assert "train-labels-idx1-ubyte and train-labels-idx1-ubyte.gz contain the same part" in refusal(tmp_path)
    (mnist / "train-labels-idx1-ubyte.gz").unlink()
    write(mnist / "train-images-idx3-ubyte", np.zeros((20, 4, 4), np.uint8))
    assert "the images differ in size: t10k-images-idx3-ubyte (6, 5), train-images-idx3-ubyte (4, 4)" in refusal(tmp_path)
    write(mnist / "train-images-idx3-ubyte", np.zeros(20, np.uint8))
    assert "is not an IDX file of bytes with 3 axes" in refusal(tmp_path)
    for path in mnist.iterdir():
        path.unlink()
    assert "contains no IDX images" in refusal(tmp_path)
    mnist.rmdir()
    assert "there is no folder" in refusal(tmp_path)


def test_a_header_that_claims_too_much_is_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "mnist/train-images-idx3-ubyte.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**15, 2**15)))
    assert "unpacks to more than 8,192 MiB" in refusal(tmp_path)
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**5, 2**10, 2**10)))
    assert "as a decompression bomb does" in refusal(tmp_path)


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_is_read(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):  # the smaller part, which is quick to read
        shutil.copy(FASHION / name, tmp_path / "mnist" / name)
    arrays, spec = snapshot(tmp_path, resize={"size": [32, 32], "filter": "pad"})
    assert spec == DataSpec(shape=(1, 32, 32), levels=256, classes=10, filter="pad") and len(arrays["x"]) == 10_000
    assert np.bincount(arrays["y"]).tolist() == [1_000] * 10
