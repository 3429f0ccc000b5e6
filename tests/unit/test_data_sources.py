"""Sources: each valid one becomes a snapshot in one standard form; others are refused with one helpful line."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from remint.data import archive, sources
from remint.data.schema import Schema
from remint.errors import DataError, SettingsError
from remint.records import DataSpec
from remint.runtime.manifest import sha256_file
from remint.settings.dataset import DatasetSettings
from remint.settings.params import validate_params

IMAGES = np.arange(5 * 4 * 6, dtype=np.uint8).reshape(5, 4, 6) % 17


def snapshot(folder: Path, **settings: Any) -> dict[str, np.ndarray]:
    sources.snapshot("mine", DatasetSettings(**settings), folder, folder / "out")
    with np.load(folder / "out" / "data.npz", allow_pickle=False) as archive:
        return dict(archive)


def spec(folder: Path) -> DataSpec:
    return Schema.read(folder / "out/schema.json").spec


def refusal(folder: Path, error: type[Exception] = DataError, **settings: Any) -> str:
    with pytest.raises(error) as caught:
        snapshot(folder, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert not (folder / "out").exists(), "something was written though the source was refused"
    return message


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits, arrays = load_digits(), snapshot(tmp_path, source="sklearn:digits")
    assert arrays["x"].dtype == np.uint8 and arrays["x"].shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(arrays["x"][:, 0], digits.images)
    np.testing.assert_array_equal(arrays["y"], digits.target)
    assert spec(tmp_path).levels == 17 and spec(tmp_path).classes == 10


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        sources.snapshot("mine", DatasetSettings(source="sklearn:digits"), tmp_path, tmp_path / name)
    assert sha256_file(tmp_path / "first/data.npz") == sha256_file(tmp_path / "second/data.npz")


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float64, np.uint16])
def test_integers_are_read_from_any_numeric_type(tmp_path: Path, kind: type) -> None:
    np.save(tmp_path / "a.npy", IMAGES.astype(kind))
    arrays = snapshot(tmp_path, source="a.npy")
    np.testing.assert_array_equal(arrays["x"][:, 0], IMAGES)
    assert spec(tmp_path).levels == 256 and "y" not in arrays


def test_labels_of_an_npz_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=IMAGES, y=np.array([0.0, 2.0, 1.0, 1.0, 0.0]))
    arrays = snapshot(tmp_path, source="a.npz", levels=17)
    assert arrays["y"].dtype == np.int64 and arrays["y"].tolist() == [0, 2, 1, 1, 0] and spec(tmp_path).levels == 17


def test_arrays_of_three_axes_are_grey_images_of_any_width(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 4, 3)))
    assert snapshot(tmp_path, source="a.npy")["x"].shape == (5, 1, 4, 3)


@pytest.mark.parametrize("shape", [None, [3, 5, 6]])
def test_channels_first_and_channels_last_give_the_same_snapshot(tmp_path: Path, shape: list[int] | None) -> None:
    x_NCHW = np.random.default_rng(0).integers(256, size=(5, 3, 5, 6), dtype=np.uint8)
    np.save(tmp_path / "first.npy", x_NCHW)
    np.save(tmp_path / "last.npy", x_NCHW.transpose(0, 2, 3, 1))
    for name in ("first.npy", "last.npy"):
        np.testing.assert_array_equal(snapshot(tmp_path, source=name, shape=shape)["x"], x_NCHW)


@pytest.mark.parametrize(
    ("array", "settings", "expected"),
    [
        (np.zeros((0, 8, 8)), {}, "is empty"),
        (np.zeros((5, 8)), {}, "expected (N, H, W)"),
        (np.full((5, 8, 8), np.nan), {}, "not a finite number (5 of 5 images, the first at index 0)"),
        (np.where(np.arange(5)[:, None, None] == 3, np.inf, np.zeros((5, 8, 8))), {}, "1 of 5 images, the first at index 3"),
        (np.full((5, 8, 8), 0.5), {"levels": 17}, "multiply by 16 and round"),
        (np.full((5, 8, 8), 1.5), {}, "is not an integer"),
        (np.full((5, 8, 8), -1), {}, "is not in 0 .. 255"),
        (np.full((5, 8, 8), 256), {}, "is not in 0 .. 255"),
        (np.full((5, 8, 8), 17), {"levels": 17}, "datasets.mine.levels"),
        (np.zeros((5, 8, 8)), {"shape": [1, 16, 16]}, "datasets.mine.shape is [1, 16, 16]"),
        (np.zeros((5, 8, 8)), {"shape": [1, 16, 16]}, "to resize the images, set resize: {size: [16, 16]} in place of shape"),
        (np.zeros((5, 3, 8, 3)), {}, "set datasets.mine.shape"),
        (np.zeros((5, 8, 8, 8)), {}, "set datasets.mine.shape"),
        (np.zeros((8, 8, 60)), {}, "may hold 60 images of 8 x 8: save np.moveaxis(x, -1, 0); else set shape: [1, 8, 60]"),
        (np.zeros((8, 9, 3, 60)), {}, "its images lie along the last axis: save np.moveaxis(x, -1, 0)"),
        (np.zeros((3, 60, 8, 8)), {}, "its channels lie along the first axis: save np.moveaxis(x, 0, 1)"),
        (
            np.linspace(-1000, 3000, 320).astype(int).reshape(5, 8, 8),
            {},
            "add 1000 to all values, and set datasets.mine.bits: 12",
        ),
        (np.full((5, 8, 8), "a"), {}, "not numbers"),
        (np.zeros((5, 8, 8), dtype=complex), {}, "not numbers"),
    ],
)
def test_bad_images_are_refused(tmp_path: Path, array: np.ndarray, settings: dict[str, Any], expected: str) -> None:
    np.save(tmp_path / "a.npy", array)
    message = refusal(tmp_path, source="a.npy", **settings)
    assert "a.npy" in message and expected in message


BAD_LABELS = [np.zeros(4), np.zeros((5, 2)), *(np.full(5, bad) for bad in (-1, 0.5, np.nan, 10**6)), np.array(list("abcde"))]


@pytest.mark.parametrize("y", BAD_LABELS)
def test_bad_labels_are_refused(tmp_path: Path, y: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", x=IMAGES, y=y)
    assert "a.npz: y " in refusal(tmp_path, source="a.npz")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, name: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    array = np.array([Bomb()], dtype=object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=array, allow_pickle=True)
    assert "pickles are refused" in refusal(tmp_path, source=name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00", b"PK\x03\x04junk"])
def test_bytes_that_are_not_an_array_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name} is not a NumPy" in refusal(tmp_path, source=name)


def test_a_damaged_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=IMAGES)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[250] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    assert "is damaged (BadZipFile)" in refusal(tmp_path, source="a.npz")


def test_a_wrong_suffix_of_an_array_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as stream:
        np.save(stream, IMAGES)
    with (tmp_path / "a.npy").open("wb") as stream:
        np.savez(stream, x=IMAGES)
    assert "a.npz is not a NumPy .npz file" in refusal(tmp_path, source="a.npz")
    assert "rename it to a.npz" in refusal(tmp_path, source="a.npy")


def test_images_along_the_last_axis_are_known_by_their_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((8, 9, 60)), y=np.arange(60) % 2)
    assert "(8, 9, 60), and its images lie along the last axis: save np.moveaxis(x, -1, 0)" in refusal(tmp_path, source="a.npz")


def test_as_many_images_as_they_are_high_are_read_where_the_shape_is_known(tmp_path: Path) -> None:
    x_NHW = np.random.default_rng(0).integers(256, size=(8, 8, 9))
    for count, settings in ((7, {}), (8, {}), (8, {"shape": [1, 8, 9], "schema_version": 2})):
        np.save(tmp_path / "a.npy", x_NHW[:count])
        given = DatasetSettings(source="a.npy", **settings)
        sources.snapshot("mine", given, tmp_path, tmp_path / "out", schemas=tmp_path / "schemas")


def test_an_npz_without_x_is_refused_with_the_names_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=IMAGES)
    assert "no array 'x' (it holds x_train)" in refusal(tmp_path, source="a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w"):
        pass
    assert "no array 'x' (it holds nothing)" in refusal(tmp_path, source="b.npz")


def test_missing_sources_are_refused(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path, source="missing.npz")
    message = refusal(tmp_path, SettingsError, source="sklearn:digit")
    assert "datasets.mine.source" in message and "did you mean 'sklearn:digits'?" in message
    assert "expected a folder of images, file.npy" in refusal(tmp_path, SettingsError, source="elsewhere:x")


def test_a_remote_source_is_read_from_where_it_was_fetched(tmp_path: Path) -> None:
    assert "s3://bucket/x was not fetched: use `remint run`, which fetches it" in refusal(tmp_path, source="s3://bucket/x")
    (tmp_path / "fetched").mkdir()
    np.save(tmp_path / "fetched/images.npy", IMAGES)
    settings = DatasetSettings(source="s3://bucket/x")
    sources.snapshot("mine", settings, tmp_path, tmp_path / "out", fetched=tmp_path / "fetched")
    with np.load(tmp_path / "out/data.npz") as archive:
        np.testing.assert_array_equal(archive["x"][:, 0], IMAGES)


def test_an_npz_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((100, 64, 64), np.uint8))
    monkeypatch.setattr(archive, "MOST_BYTES", 100 * 64 * 64)  # and the header of the array makes more
    assert "a.npz unpacks to more than" in refusal(tmp_path, source="a.npz")
    monkeypatch.setattr(archive, "MOST_BYTES", 100 * 64 * 64 + 128)
    assert snapshot(tmp_path, source="a.npz")["x"].shape == (100, 1, 64, 64)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"label": "y"}, "label does not apply to kind: image"),
        ({"kind": "table", "resize": {"size": [8, 8]}}, "resize does not apply to kind: table"),
        ({"kind": "table", "channels": 3}, "channels does not apply to kind: table"),
    ],
)
def test_settings_of_another_kind_of_data_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        DatasetSettings(source="x", **settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": [32, 32]}, "key 'size': did you mean 'resize: {size: [32, 32]}'?"),
        ({"image_size": 32}, "key 'image_size': did you mean 'resize: {size: [32, 32]}'?"),
        ({"resolution": "32x32"}, "key 'resolution': did you mean 'resize: {size: [H, W]}'?"),
        ({"shape": [28, 28]}, "key 'shape': did you mean 'resize: {size: [28, 28]}'?"),
        ({"resize": [32, 24]}, "key 'resize': did you mean 'resize: {size: [32, 24]}'?"),
    ],
)
def test_a_size_in_another_place_is_answered_with_resize(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        validate_params({"datasets": {"mine": {"source": "x", **settings}}, "pipelines": {}})
    assert str(caught.value) == f"params.yaml: datasets.mine: {expected}"


def test_arrays_keep_their_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES)
    assert "x has 1 channels, but params.yaml: datasets.mine.channels is 3" in refusal(tmp_path, source="a.npy", channels=3)
