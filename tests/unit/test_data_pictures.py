"""Image files: decoded exactly, labelled by folder, resampled like Pillow; broken and hostile files are named."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remint.data import pictures, sources
from remint.data.images import resize_image, resize_images
from remint.data.schema import Schema
from remint.errors import DataError
from remint.records import DataSpec
from remint.settings.dataset import DatasetSettings, ResizeSettings

Settings = dict[str, Any]


def picture(seed: int, size: tuple[int, int] = (6, 5), channels: int = 3) -> np.ndarray:
    """Make a random image, uint8 (H, W, C), or (H, W) if grey."""
    x_HWC = np.random.default_rng(seed).integers(256, size=(*size, channels), dtype=np.uint8)
    return x_HWC if channels > 1 else x_HWC[:, :, 0]


def save(path: Path, x: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path, **options)


def tree(folder: Path, count: int = 4, **options: Any) -> None:
    for index in range(count):
        save(folder / ("cat", "dog")[index % 2] / f"{index}.png", picture(index, **options))


def snapshot(folder: Path, source: str = "pets", **settings: Any) -> tuple[dict[str, np.ndarray], DataSpec]:
    sources.snapshot("pets", DatasetSettings(source=source, **settings), folder, folder / "out")
    with np.load(folder / "out/data.npz", allow_pickle=False) as archive:
        return dict(archive), Schema.read(folder / "out/schema.json").spec


def refusal(folder: Path, source: str = "pets", **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        snapshot(folder, source, **settings)
    assert "\n" not in str(caught.value) and "datasets.pets" in str(caught.value)
    assert not (folder / "out").exists()
    return str(caught.value)


def test_folders_are_labels_and_pixels_are_exact(tmp_path: Path) -> None:
    tree(tmp_path / "pets")
    arrays, spec = snapshot(tmp_path)
    assert spec == DataSpec(shape=(3, 6, 5), levels=256, classes=2, class_names=("cat", "dog"))
    assert arrays["y"].tolist() == [0, 0, 1, 1] and arrays["y"].dtype == np.int64
    for x_CHW, index in zip(arrays["x"], (0, 2, 1, 3), strict=True):  # in the order of their paths
        np.testing.assert_array_equal(x_CHW.transpose(1, 2, 0), picture(index))


def test_a_flat_folder_has_no_labels_and_a_folder_around_everything_is_a_wrapper(tmp_path: Path) -> None:
    for folder in ("pets", "wrapped/a/b"):
        for index in range(3):
            save(tmp_path / folder / f"{index}.png", picture(index))
    arrays, spec = snapshot(tmp_path)
    assert "y" not in arrays and spec.classes == 0 and spec.class_names == ()
    np.testing.assert_array_equal(snapshot(tmp_path, "wrapped")[0]["x"], arrays["x"])
    save(tmp_path / "wrapped/a/c/9.png", picture(9))
    assert snapshot(tmp_path, "wrapped")[1].class_names == ("b", "c")


@pytest.mark.parametrize("stray", ["9.png", "cat/more/9.png"])
def test_folders_that_are_not_labels_are_refused(tmp_path: Path, stray: str) -> None:
    tree(tmp_path / "pets")
    save(tmp_path / "pets" / stray, picture(9))
    message = refusal(tmp_path)
    assert stray in message and "a folder for each label" in message


def test_a_folder_name_that_cannot_be_printed_is_refused(tmp_path: Path) -> None:
    tree(tmp_path / "pets")
    save(Path(os.fsdecode(os.fsencode(tmp_path / "pets") + b"/\xff/9.png")), picture(9))
    assert "the folder '\\udcff' has a name that cannot be printed" in refusal(tmp_path)


def test_three_formats_are_read_with_each_of_their_suffixes(tmp_path: Path) -> None:
    x_HWC = picture(0)
    save(tmp_path / "pets/a.png", x_HWC)
    save(tmp_path / "pets/b.webp", x_HWC, lossless=True)
    save(tmp_path / "pets/c.JPG", x_HWC, format="JPEG", quality=90)
    save(tmp_path / "pets/d.jpeg", x_HWC, format="PNG")  # the content decides, not the suffix
    x_NCHW = snapshot(tmp_path)[0]["x"].transpose(0, 2, 3, 1)
    with Image.open(tmp_path / "pets/c.JPG") as jpeg:
        expected = [x_HWC, x_HWC, np.asarray(jpeg), x_HWC]
    np.testing.assert_array_equal(x_NCHW, expected)


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".jif", ".tif", ".TIFF", ".bmp", ".dib", ".PNG", ".Webp", "", ".dat"])
def test_images_are_known_by_their_content(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / f"pets/a{suffix}", picture(0), format="BMP")
    save(tmp_path / "pets/b.png", picture(1))
    np.testing.assert_array_equal(snapshot(tmp_path)[0]["x"].transpose(0, 2, 3, 1), [picture(0), picture(1)])
    said = f"misnamed files=1 first=a{suffix} format=a BMP image" in capsys.readouterr().err
    assert said == (suffix not in (".bmp", ".dib"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("9.xyz", b"\x01\x02\x03", "9.xyz is not an image"),
        ("movie.mp4", b"\0\0\0 ftypisom", "movie.mp4 is not an image"),
        ("9.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "9.png is a pointer of Git LFS: fetch the content (git lfs pull)"),
        ("9.png", b"<!DOCTYPE html><html>404</html>", "9.png is an HTML page: it may be an error page that was saved in place of the data"),
        ("9.jpg", b"GIF89a", "9.jpg is a GIF image: save it as PNG"),
        ("9.jpg", b"PK\x03\x04" + bytes(40), "9.jpg is a zip archive, not an image"),
        ("9.png", b"\x89PNG\r\n\x1a\n", "9.png is damaged or cut off"),
        ("9.heic", b"\0\0\0\x18ftypheic", "9.heic is not PNG, JPEG, WebP, TIFF or BMP"),
    ],
)  # fmt: skip
def test_files_that_are_left_out_count_as_undecodable(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    tree(tmp_path / "pets")
    (tmp_path / "pets/cat" / name).write_bytes(content)
    message = refusal(tmp_path)
    assert "1 of 5 images cannot be used, more than 1% (setting undecodable): cat/" in message and expected in message
    assert len(snapshot(tmp_path, undecodable=0.2)[0]["x"]) == 4


@pytest.mark.parametrize(
    "name", [".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", "README", "LICENSE", "labels.CSV", "a.json"]
)
def test_files_that_lie_beside_images_do_not_count(tmp_path: Path, name: str) -> None:
    tree(tmp_path / "pets")
    (tmp_path / "pets/cat" / name).write_bytes(bytes(100))
    assert len(snapshot(tmp_path)[0]["x"]) == 4 and not (tmp_path / "out/set_aside.json").exists()


def test_hidden_files_and_other_files_are_ignored(tmp_path: Path) -> None:
    tree(tmp_path / "pets")
    (tmp_path / "pets/README.md").write_text("of my pets")
    (tmp_path / "pets/cat/.hidden.png").write_text("no image")
    (tmp_path / "pets/.git").mkdir()
    (tmp_path / "pets/.git/x.png").symlink_to("/etc/hostname")
    assert len(snapshot(tmp_path)[0]["x"]) == 4 and not (tmp_path / "out/set_aside.json").exists()


# --- decoding


def test_grey_and_colour_images_are_converted_to_the_configured_channels(tmp_path: Path) -> None:
    grey_HW = picture(0, channels=1)
    save(tmp_path / "pets/grey.png", grey_HW)
    Image.fromarray(grey_HW).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "pets/palette.png")  # only grey colours
    np.testing.assert_array_equal(snapshot(tmp_path)[0]["x"], [[grey_HW], [grey_HW]])
    np.testing.assert_array_equal(snapshot(tmp_path, channels=3)[0]["x"], [[grey_HW] * 3] * 2)
    save(tmp_path / "pets/colour.png", picture(1))
    assert "the images differ in channels: 2 of 3 have 1, colour.png has 3: set channels: 1 or 3" in refusal_after_a_snapshot(
        tmp_path
    )
    luma = np.asarray(Image.fromarray(picture(1)).convert("L"))
    np.testing.assert_array_equal(snapshot(tmp_path, channels=1)[0]["x"], [[luma], [grey_HW], [grey_HW]])


def refusal_after_a_snapshot(folder: Path, **settings: Any) -> str:
    """Return the refusal of an import. The earlier valid snapshot must not change."""
    before = (folder / "out/data.npz").read_bytes()
    with pytest.raises(DataError) as caught:
        snapshot(folder, **settings)
    assert (folder / "out/data.npz").read_bytes() == before
    return str(caught.value)


def decode(content: bytes, **settings: Any) -> np.ndarray:
    return pictures.decode_image(content, DatasetSettings(source="x", **settings))


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_transparent_parts_are_blended_with_white() -> None:
    x_HWC = np.zeros((2, 2, 4), np.uint8)
    x_HWC[0] = [10, 20, 30, 255]  # opaque above, completely transparent below
    np.testing.assert_array_equal(
        decode(encode(Image.fromarray(x_HWC))).transpose(1, 2, 0), [[[10, 20, 30]] * 2, [[255, 255, 255]] * 2]
    )
    grey = decode(encode(Image.merge("LA", [Image.new("L", (2, 2), 7), Image.new("L", (2, 2), 255)])))
    np.testing.assert_array_equal(grey, np.full((1, 2, 2), 7))


def test_images_of_16_bits_and_of_1_bit_are_read() -> None:
    x_HW = np.array([[0, 255, 256], [511, 512, 65535]], np.uint16)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(x_HW))), [x_HW // 256])
    bits_HW = np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bits_HW))), [bits_HW * 255])


def test_photographs_are_rotated_as_exif_says() -> None:
    x_HWC = picture(0, (4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees clockwise
    shown = decode(encode(Image.fromarray(x_HWC), exif=exif.tobytes())).transpose(1, 2, 0)
    np.testing.assert_array_equal(shown, np.rot90(x_HWC, -1))


# --- resize


@pytest.mark.parametrize("filter", ["lanczos", "bicubic", "bilinear", "box", "nearest"])
def test_resampling_filters_equal_those_of_pillow(tmp_path: Path, filter: str) -> None:
    save(tmp_path / "pets/a.png", picture(0, (13, 9)))
    resize = {"size": [7, 5], "filter": filter}
    (x_CHW,) = snapshot(tmp_path, resize=resize)[0]["x"]
    # 13x9 cropped to the proportions of 7x5 stays 13x9 (9 * 7/5 = 12.6 rows: 13), so nothing is cropped
    expected = Image.fromarray(picture(0, (13, 9))).resize((5, 7), Image.Resampling[filter.upper()])
    np.testing.assert_array_equal(x_CHW.transpose(1, 2, 0), np.asarray(expected))
    # The channels of an array are resized one by one, with the same result.
    np.save(tmp_path / "a.npy", picture(0, (13, 9)).transpose(2, 0, 1)[None])
    np.testing.assert_array_equal(snapshot(tmp_path, "a.npy", resize=resize, shape=[3, 13, 9])[0]["x"][0], x_CHW)


def test_a_box_of_two_is_the_mean_of_four_around_the_centre() -> None:
    x_HWC = picture(0, (6, 8)) // 4 * 4  # Pillow rounds after each axis: these values need no rounding
    small = np.asarray(resize_image(Image.fromarray(x_HWC), ResizeSettings(size=[3, 3], filter="box")))
    middle = x_HWC[:, 1:7].astype(float).reshape(3, 2, 3, 2, 3).mean((1, 3))  # the middle 6 of 8 columns
    np.testing.assert_array_equal(small, middle)


def test_padding_adds_zeros_and_changes_nothing() -> None:
    x_NCHW = np.random.default_rng(0).integers(1, 17, size=(3, 1, 28, 28), dtype=np.uint8)
    padded = resize_images(x_NCHW, ResizeSettings(size=[32, 32], filter="pad"), levels=17)
    np.testing.assert_array_equal(padded, np.pad(x_NCHW, ((0, 0), (0, 0), (2, 2), (2, 2))))
    with pytest.raises(DataError, match="an image of 28x28 does not fit into resize.size 27x32 with filter pad"):
        resize_images(x_NCHW, ResizeSettings(size=[27, 32], filter="pad"), levels=17)


def test_a_filter_that_overshoots_stays_within_the_levels() -> None:
    edge_NCHW = np.zeros((1, 1, 8, 8), np.uint8)
    edge_NCHW[..., 4:] = 16
    assert resize_images(edge_NCHW, ResizeSettings(size=[16, 16]), levels=256).max() > 16
    assert resize_images(edge_NCHW, ResizeSettings(size=[16, 16]), levels=17).max() == 16


def test_images_of_different_sizes_must_be_resized(tmp_path: Path) -> None:
    tree(tmp_path / "pets")
    save(tmp_path / "pets/cat/9.png", picture(9, (7, 7)))
    assert "the images differ in size: 4 of 5 have 6x5, cat/9.png has 7x7: set resize: {size: [H, W]}" in refusal(tmp_path)
    assert "cat/9.png: an image of 7x7 does not fit" in refusal(tmp_path, resize={"size": [6, 6], "filter": "pad"})
    assert snapshot(tmp_path, resize={"size": [8, 8], "filter": "pad"})[0]["x"].shape == (5, 3, 8, 8)


def test_an_image_three_pixels_wide_has_three_channels(tmp_path: Path) -> None:
    tree(tmp_path / "pets", size=(8, 3))
    assert snapshot(tmp_path)[1].shape == (3, 8, 3)


# --- broken files


def test_a_few_broken_files_are_set_aside_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "pets", count=198)
    whole = (tmp_path / "pets/cat/0.png").read_bytes()
    (tmp_path / "pets/cat/broken.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pets/dog/text.png").write_text("not an image")
    arrays, _ = snapshot(tmp_path)  # 2 of 200 are 1%, which is allowed
    expected = {"cat/broken.png": "is damaged or cut off", "dog/text.png": "is not an image"}
    assert len(arrays["x"]) == 198 and json.loads((tmp_path / "out/set_aside.json").read_text()) == expected
    assert "set_aside files=2 of=200" in capsys.readouterr().err
    (tmp_path / "pets/dog/moving.gif").write_bytes(b"GIF89a")
    message = refusal_after_a_snapshot(tmp_path)
    assert "3 of 201 images cannot be used, more than 1% (setting undecodable): cat/broken.png is damaged or cut off" in message
    assert "dog/moving.gif is not PNG, JPEG, WebP, TIFF or BMP" in message
    assert len(snapshot(tmp_path, undecodable=0.02)[0]["x"]) == 198


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/a.txt").touch()
    (tmp_path / "pets/b.txt").touch()
    assert "contains no PNG, JPEG, WebP, TIFF or BMP files (2 other files)" in refusal(tmp_path)
    assert "there is no folder" in refusal(tmp_path, "nowhere/")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width: int, height: int) -> bytes:
    """Make a small PNG that decodes to width x height."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (2**26 + 1, 1), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_never_decoded(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(pictures.Undecodable, match="pixels"):
        decode(png_bomb(*size))


def test_a_bomb_in_a_text_chunk_is_never_unpacked() -> None:
    good = encode(Image.fromarray(picture(0)))
    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(80 << 20), 9))
    np.testing.assert_array_equal(decode(good[:33] + text + good[33:]), decode(good))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "pets")
    with (tmp_path / "pets/cat/large.png").open("wb") as stream:
        stream.truncate(1 << 30)  # sparse: uses no space
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read") if path.name == "large.png" else real(path))
    assert "cat/large.png has 1,073,741,824 bytes" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_decode_or_are_set_aside(kind: str) -> None:
    """There is no other outcome: no crash and no error of Pillow."""
    generator = np.random.default_rng(0)
    good = encode(Image.fromarray(picture(0, (24, 24))), kind)
    aside = 0
    for _ in range(300):
        bad = bytearray(good)
        for place in generator.integers(len(bad), size=generator.integers(1, 12)):
            bad[place] = generator.integers(256)
        if generator.random() < 0.3:
            del bad[generator.integers(len(bad)) :]
        try:
            assert decode(bytes(bad)).dtype == np.uint8
        except pictures.Undecodable:
            aside += 1
    assert aside > 30


# --- links


@pytest.mark.parametrize("target", ["/etc/hostname", "../secret.png", "../../../../../../etc/hostname"])
def test_links_that_lead_out_are_refused_by_name(tmp_path: Path, target: str) -> None:
    tree(tmp_path / "pets")
    save(tmp_path / "secret.png", picture(9))
    (tmp_path / "pets/link.png").symlink_to(target)
    message = refusal(tmp_path)
    assert "link.png is a link that leads out of" in message


def test_links_to_folders_and_pipes_and_broken_links_are_refused(tmp_path: Path) -> None:
    tree(tmp_path / "pets")
    (tmp_path / "pets/loop").symlink_to(".")
    assert "loop is a link to a folder" in refusal(tmp_path)
    (tmp_path / "pets/loop").unlink()
    (tmp_path / "pets/cat/gone.png").symlink_to("nothing.png")
    assert "gone.png is a link to a folder or to nothing" in refusal(tmp_path)
    (tmp_path / "pets/cat/gone.png").unlink()
    os.mkfifo(tmp_path / "pets/cat/pipe.png")
    assert "pipe.png is a pipe, socket or device" in refusal(tmp_path)  # reading a pipe would not end


def test_a_link_within_the_folder_is_read_as_its_file(tmp_path: Path) -> None:
    tree(tmp_path / "pets")
    (tmp_path / "pets/dog/again.png").symlink_to("../cat/0.png")
    x_NCHW = snapshot(tmp_path)[0]["x"]
    np.testing.assert_array_equal(x_NCHW[-1], x_NCHW[0])
    (tmp_path / "here").symlink_to(tmp_path / "pets")  # the folder itself may be a link: the settings name it
    np.testing.assert_array_equal(snapshot(tmp_path, "here")[0]["x"], x_NCHW)


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    tree(tmp_path / "pets")
    snapshot(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for path in sorted((tmp_path / "pets").rglob("*.png"), reverse=True):  # written again, in another order
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    snapshot(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
