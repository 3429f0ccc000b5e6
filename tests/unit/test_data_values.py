"""Values of images: the range of all files decides how they are read, a setting overrides it, and the schema keeps it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remint.data import pictures, sources
from remint.data.schema import SCHEMA, Schema
from remint.errors import DataError
from remint.records import DataSpec
from remint.settings.dataset import DatasetSettings
from tests.support.tiff import tiff
from tests.unit.test_data_pictures import chunk, encode, picture, save

Settings = dict[str, Any]
RANDOM = np.random.default_rng(0)


def snapshot(folder: Path, source: str = "pets", **settings: Any) -> np.ndarray:
    given = DatasetSettings(source=source, **settings)
    sources.snapshot("pets", given, folder, folder / "out", schemas=folder / "schemas")
    with np.load(folder / "out/data.npz", allow_pickle=False) as archive:
        return archive["x"]


def learnt(folder: Path) -> Schema:
    return Schema.read(folder / "out" / SCHEMA)


def refusal(folder: Path, source: str = "pets", **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        snapshot(folder, source, **settings)
    return str(caught.value)


def deep(highest: int, seed: int = 0, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    """Make values 0 .. ``highest``, uint16 (H, W), with both ends."""
    x_HW = np.random.default_rng(seed).integers(highest + 1, size=size, dtype=np.uint16)
    x_HW[0, :2] = 0, highest
    return x_HW


def deep_png(x_HWC: np.ndarray, more: bytes = b"") -> bytes:
    """Write a PNG with 16 bits for each of 1 to 4 channels, which Pillow does not, and with ``more`` parts."""
    height, width, channels = x_HWC.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x_HWC)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# --- 16 bits


@pytest.mark.parametrize(
    ("highest", "bits"), [(255, 8), (1023, 10), (1024, 12), (4095, 12), (16383, 14), (16384, 16), (65535, 16)]
)
def test_the_range_of_all_files_decides_how_16_bits_are_read(tmp_path: Path, highest: int, bits: int) -> None:
    save(tmp_path / "pets/dark.png", deep(200, seed=1))  # alone it would be read as 8 bits
    save(tmp_path / "pets/light.png", deep(highest))
    x_NCHW = snapshot(tmp_path)
    np.testing.assert_array_equal(x_NCHW[:, 0], np.stack([deep(200, seed=1), deep(highest)]) >> (bits - 8))
    assert learnt(tmp_path).spec.bits == (None if bits == 16 else bits)
    assert learnt(tmp_path).decisions["values"].startswith(f"0 .. {highest} in 16 bits: read as {bits} bits")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("highest", [4095, 65535])
def test_colours_of_16_bits_keep_their_lower_byte(tmp_path: Path, channels: int, highest: int) -> None:
    x_HWC = RANDOM.integers(highest + 1, size=(6, 5, channels)).astype(np.uint16)
    x_HWC[0, 0, 0] = highest
    if channels in (2, 4):
        x_HWC[..., -1] = 65535  # opaque
    write(tmp_path / "pets/0.png", deep_png(x_HWC))
    shown_HWC = x_HWC[..., : 1 if channels < 3 else 3]
    np.testing.assert_array_equal(snapshot(tmp_path)[0].transpose(1, 2, 0), shown_HWC >> (4 if highest == 4095 else 8))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_value_or_colour_of_16_bits_is_white(tmp_path: Path, channels: int) -> None:
    x_HWC = RANDOM.integers(2000, 65536, size=(6, 5, channels)).astype(np.uint16)
    x_HWC[0] = 1000
    x_HWC[1, :, 0] = 1000 + (channels > 1)  # one colour of three is not enough, and the lower byte counts
    write(tmp_path / "pets/0.png", deep_png(x_HWC, chunk(b"tRNS", struct.pack(f">{channels}H", *[1000] * channels))))
    shown_HWC = x_HWC >> 8
    shown_HWC[0 if channels > 1 else slice(2)] = 255
    np.testing.assert_array_equal(snapshot(tmp_path)[0].transpose(1, 2, 0), shown_HWC)


@pytest.mark.parametrize("packing", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_tiff_of_16_bits_is_read_like_png(tmp_path: Path, packing: str) -> None:
    write(tmp_path / "pets/0.tif", encode(Image.fromarray(deep(4000)), "TIFF", compression=packing))
    np.testing.assert_array_equal(snapshot(tmp_path)[0, 0], deep(4000) >> 4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_of_16_bits_in_either_order_of_bytes(tmp_path: Path, order: str, channels: int) -> None:
    x_HWC = RANDOM.integers(1024, size=(6, 5, channels)).astype(np.uint16)
    write(tmp_path / "pets/0.TIFF", tiff(x_HWC, order=order))
    np.testing.assert_array_equal(snapshot(tmp_path)[0].transpose(1, 2, 0), x_HWC >> 2)


def test_later_files_are_read_by_the_schema_or_do_not_fit_it(tmp_path: Path) -> None:
    save(tmp_path / "pets/0.png", deep(4000))
    first = snapshot(tmp_path)
    kept = learnt(tmp_path)
    save(tmp_path / "pets/0.png", np.minimum(deep(4000), 900))  # of 10 bits, but of the same camera
    np.testing.assert_array_equal(snapshot(tmp_path), np.minimum(first, 900 >> 4))
    assert learnt(tmp_path) == kept
    save(tmp_path / "pets/0.png", deep(4096))
    assert "bits of a value: was 12, is now 14" in refusal(tmp_path)
    save(tmp_path / "pets/0.png", picture(0, channels=1))  # of 8 bits
    np.testing.assert_array_equal(snapshot(tmp_path)[0, 0], picture(0, channels=1))


def test_the_setting_bits_overrides_the_range(tmp_path: Path) -> None:
    save(tmp_path / "pets/0.png", deep(900))
    np.testing.assert_array_equal(snapshot(tmp_path, bits=16)[0, 0], deep(900) >> 8)
    assert learnt(tmp_path).spec.bits is None
    assert (
        "bits of a value: was 16, is now 12" in (lines := refusal(tmp_path, bits=12)) and "(setting bits was 16, is 12)" in lines
    )
    np.testing.assert_array_equal(snapshot(tmp_path, bits=12, schema_version=2)[0, 0], deep(900) >> 4)
    assert "a 16-bit file holds 900, which has more bits than bits: 9" in refusal(tmp_path, bits=9)


def test_a_schema_from_before_stays_and_dark_images_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "pets/0.png", deep(4000))
    snapshot(tmp_path, bits=16)  # as an older remint read them
    capsys.readouterr()
    np.testing.assert_array_equal(snapshot(tmp_path)[0, 0], deep(4000) >> 8)
    assert "dark highest=4000 bits=12" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["pets", "pets.npy"])
def test_hot_pixels_that_make_all_others_black_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    x_HW = deep(4095, size=(60, 50))
    x_HW[3, 4] = 65535
    save(tmp_path / "pets/0.png", deep(4095, size=(60, 50)))
    save(tmp_path / "pets/1.png", x_HW)
    np.save(tmp_path / "pets.npy", np.stack([deep(4095, size=(60, 50)), x_HW]))
    given = {"bits": 16} if source == "pets.npy" else {}
    np.testing.assert_array_equal(snapshot(tmp_path, source, **given)[1, 0], x_HW >> 8)
    assert "hot bits=12 most=4095" in capsys.readouterr().err
    lines = refusal(tmp_path, source, bits=12)
    assert "clip the values" in lines and ("1.png to 4095" in lines or source == "pets.npy")
    save(tmp_path / "pets/1.png", np.minimum(x_HW, 4095))
    np.save(tmp_path / "pets.npy", np.minimum(np.load(tmp_path / "pets.npy"), 4095))
    snapshot(tmp_path, source, bits=12, schema_version=2)
    assert "hot" not in capsys.readouterr().err


def test_a_spec_without_bits_keeps_its_bytes() -> None:
    spec = DataSpec(shape=(1, 8, 8), levels=256)
    assert "bits" not in spec.to_json()
    assert DataSpec(**spec.to_json()) == spec
    other = DataSpec(shape=(1, 8, 8), levels=256, bits=12)
    assert other.to_json()["bits"] == 12 and not spec.fits(other, conditional=False)


def test_signed_and_floating_tiff_are_set_aside_with_the_reason(tmp_path: Path) -> None:
    for kind in (np.float32, np.int32):
        with pytest.raises(pictures.Undecodable, match="holds fractions, signed or 32-bit values: save it with 8 or 16 bits"):
            pictures.decode_image(encode(Image.fromarray(np.ones((4, 4), kind)), "TIFF"), DatasetSettings(source="x"))


def test_arrays_of_16_bits_need_the_setting(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.stack([deep(4000), deep(4000, seed=1)]))
    message = refusal(tmp_path, "a.npy")
    assert "set datasets.pets.bits: 12 in params.yaml, which reads 0 .. 4095 as 256 levels" in message
    np.testing.assert_array_equal(snapshot(tmp_path, "a.npy", bits=12)[0, 0], deep(4000) >> 4)
    assert learnt(tmp_path).spec.bits == 12
    assert "is not in 0 .. 1023" in refusal(tmp_path, "a.npy", bits=10)


# --- few levels


BITS_NHW = RANDOM.integers(2, size=(4, 6, 5))
BITS_NHW[0, 0, :2] = 0, 1


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32])
def test_arrays_of_two_values_are_two_levels(tmp_path: Path, kind: type) -> None:
    np.save(tmp_path / "a.npy", BITS_NHW.astype(kind))
    np.testing.assert_array_equal(snapshot(tmp_path, "a.npy")[:, 0], BITS_NHW)
    assert learnt(tmp_path).spec.levels == 2
    assert learnt(tmp_path).decisions == {"values": "0 and 1 only: read as 2 levels (levels: 256 reads them as two of 256)"}
    snapshot(tmp_path, "a.npy", levels=256, schema_version=2)
    assert learnt(tmp_path).spec.levels == 256 and learnt(tmp_path).decisions == {"range": "0 .. 1, read as 256 levels"}
    snapshot(tmp_path, "a.npy", schema_version=2)
    assert learnt(tmp_path).spec.levels == 256, "the schema decides"
    np.save(tmp_path / "a.npy", BITS_NHW * 9)
    assert "levels: was 2, is now 256" in refusal(tmp_path, "a.npy")
    np.save(tmp_path / "a.npy", BITS_NHW * 0)
    assert snapshot(tmp_path, "a.npy").max() == 0 and learnt(tmp_path).spec.levels == 2


def test_files_of_one_bit_are_two_levels(tmp_path: Path) -> None:
    for index, x_HW in enumerate(BITS_NHW):
        save(tmp_path / f"pets/{index}.png", x_HW.astype(bool))
    np.testing.assert_array_equal(snapshot(tmp_path)[:, 0], BITS_NHW)
    assert learnt(tmp_path).spec.levels == 2
    np.testing.assert_array_equal(snapshot(tmp_path, levels=256, schema_version=2)[:, 0], BITS_NHW * 255)
    np.testing.assert_array_equal(snapshot(tmp_path, schema_version=2)[:, 0], BITS_NHW * 255)
    snapshot(tmp_path, resize={"size": [4, 4]}, schema_version=3)
    assert learnt(tmp_path).spec.levels == 256, "resampling makes greys"


@pytest.mark.parametrize(
    ("factor", "levels", "said"),
    [
        (15, 16, "nearly black: if there are no others, set levels: 16"),
        (255, 2, "multiples of 255 only, read as 256 levels: levels: 2 reads them as 0 .. 1"),
    ],
)
def test_few_of_the_levels_are_said_and_a_setting_reads_them(tmp_path: Path, factor: int, levels: int, said: str) -> None:
    for index, x_HW in enumerate(BITS_NHW):
        x_HW = x_HW * factor if levels == 2 else np.arange(30).reshape(6, 5) % 16
        save(tmp_path / f"pets/{index}.png", x_HW.astype(np.uint8))
    whole = snapshot(tmp_path)
    assert learnt(tmp_path).spec.levels == 256 and said in learnt(tmp_path).decisions["values"]
    x_NCHW = snapshot(tmp_path, levels=levels, schema_version=2)
    np.testing.assert_array_equal(x_NCHW, whole if levels == 16 else whole // 255)
    assert learnt(tmp_path).spec.levels == levels
    if levels == 16:
        assert snapshot(tmp_path, levels=16, resize={"size": [13, 13]}, schema_version=3).max() == 15, "overshoots are cut off"


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("least", "form"), [(0, "n/255"), (-1, "n/127.5 - 1")])
def test_fractions_that_are_levels_beyond_doubt_are_read(tmp_path: Path, kind: type, least: int, form: str) -> None:
    x_NHW = RANDOM.integers(256, size=(4, 6, 5))
    fractions = x_NHW / 255 if least == 0 else x_NHW / 127.5 - 1
    np.save(tmp_path / "a.npy", fractions.astype(kind))
    np.testing.assert_array_equal(snapshot(tmp_path, "a.npy")[:, 0], x_NHW)
    assert learnt(tmp_path).decisions == {"values": f"{least} .. 1, and each is {form}: read as the 256 levels n"}


@pytest.mark.parametrize(
    ("scale", "shift", "remedy"),
    [
        (1, 0, "multiply by 255 and round: np.round(x * 255)"),
        (2, -1, "add 1, multiply by 127.5 and round: np.round((x + 1) * 127.5)"),
        (3, -1, "undo the standardisation and round"),
        (3, 0, "round them"),
    ],
)
def test_other_fractions_are_refused_with_the_formula(tmp_path: Path, scale: float, shift: float, remedy: str) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((4, 6, 5)) * scale + shift)
    message = refusal(tmp_path, "a.npy")
    assert f"is not an integer (4 of 4 images, the first at index 0): {remedy}: values are levels 0 .. 255" in message


# --- channels


def test_greys_stay_grey_with_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(picture(0, channels=1)).convert("P", palette=Image.Palette.ADAPTIVE)
    write(tmp_path / "pets/palette.png", encode(palette, transparency=0))
    write(tmp_path / "pets/opacity.png", encode(Image.merge("LA", [Image.new("L", (5, 6), 7), Image.new("L", (5, 6), 255)])))
    write(tmp_path / "pets/deep.png", deep_png(np.full((6, 5, 2), 65535, np.uint16)))
    assert snapshot(tmp_path).shape == (3, 1, 6, 5)


def test_a_palette_of_greys_that_was_learnt_as_colour_stays_colour(tmp_path: Path) -> None:
    palette = Image.fromarray(picture(0, channels=1)).convert("P", palette=Image.Palette.ADAPTIVE)
    write(tmp_path / "pets/palette.png", encode(palette, transparency=0))
    snapshot(tmp_path, channels=3)  # as an older remint read it
    assert snapshot(tmp_path).shape == (1, 3, 6, 5)


def test_opaque_colours_and_cmyk_are_colours() -> None:
    x_HWC = picture(0)
    opaque = np.dstack([x_HWC, np.full(x_HWC.shape[:2], 255, np.uint8)])
    settings = DatasetSettings(source="x")
    np.testing.assert_array_equal(pictures.decode_image(encode(Image.fromarray(opaque)), settings).transpose(1, 2, 0), x_HWC)
    inks = encode(Image.new("CMYK", (5, 6), (0, 255, 255, 0)), "JPEG", quality=100)  # red
    assert np.abs(pictures.decode_image(inks, settings)[:, 2, 2].astype(int) - [255, 0, 0]).max() <= 3


# --- labels


@pytest.mark.parametrize(
    ("y", "names", "place"),
    [
        ([1, 2, 10, 2], ("1", "2", "10"), [0, 1, 2, 1]),
        ([0, 5, 5, 0], ("0", "5"), [0, 1, 1, 0]),
        ([0, 1, 2, 1], (), [0, 1, 2, 1]),
    ],
)
def test_classes_are_the_numbers_that_occur(tmp_path: Path, y: list[int], names: tuple[str, ...], place: list[int]) -> None:
    np.savez(tmp_path / "a.npz", x=RANDOM.integers(256, size=(4, 6, 5)), y=np.array(y))
    snapshot(tmp_path, "a.npz")
    spec = learnt(tmp_path).spec
    assert (spec.class_names, spec.classes) == (names, len(set(y))) and ("labels" in learnt(tmp_path).decisions) == bool(names)
    np.savez(tmp_path / "a.npz", x=RANDOM.integers(256, size=(2, 6, 5)), y=np.array(y[2:]))
    snapshot(tmp_path, "a.npz")
    with np.load(tmp_path / "out/data.npz") as archive:
        assert archive["y"].tolist() == place[2:], "a later file that lacks a class"
    np.savez(tmp_path / "a.npz", x=RANDOM.integers(256, size=(2, 6, 5)), y=np.array([7, 7]))
    assert ("labels: 1 new: '7'" if names else "labels: were 0 .. 2, are now up to 7") in refusal(tmp_path, "a.npz")


def test_numbered_labels_with_gaps_that_were_learnt_as_numbers_stay_numbers(tmp_path: Path) -> None:
    x_NHW = RANDOM.integers(256, size=(4, 6, 5))
    np.savez(tmp_path / "a.npz", x=x_NHW, y=np.arange(4))
    snapshot(tmp_path, "a.npz")
    np.savez(tmp_path / "a.npz", x=x_NHW, y=np.array([1, 3, 3, 1]))
    snapshot(tmp_path, "a.npz")
    with np.load(tmp_path / "out/data.npz") as archive:
        assert archive["y"].tolist() == [1, 3, 3, 1]
