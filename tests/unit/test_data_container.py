"""Parts of an image file that the decoder gets: everything that determines the pixels, nothing that costs it much time."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from remint.data import container, decoding, pictures
from remint.settings.dataset import DatasetSettings
from tests.support.hostile_images import READ_SUFFIXES, valid_files
from tests.support.measured import Reader, start_reader
from tests.support.tiff import tiff
from tests.unit.test_data_pictures import encode, picture

MIB = 1 << 20


@pytest.fixture(scope="module")
def read() -> Iterator[Reader]:
    with start_reader() as process:
        yield process


def decode_with_pillow(content: bytes) -> np.ndarray:
    """Return the pixels that Pillow decodes from the unchanged file."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGBA"))


@pytest.mark.parametrize("index", [index for index, (ending, _) in enumerate(valid_files()) if ending in READ_SUFFIXES])
def test_the_pixels_are_those_of_the_whole_file(index: int) -> None:
    _, content = valid_files()[index]
    essential, turned = container.strip_metadata(content)
    assert len(essential) <= len(content)
    image = Image.open(io.BytesIO(essential)).convert("RGBA")
    np.testing.assert_array_equal(
        np.asarray(image if turned == 1 else image.transpose(decoding.TRANSPOSES[turned])), decode_with_pillow(content)
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_orientation_of_every_format(kind: str, order: str, orientation: int) -> None:
    entries = [(0x0100, 4, 1, 24, 0), (0x0112, 3, 1, orientation, 0)]
    exif = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(entries))
    exif += struct.pack(f"{order}HHII", *entries[0][:4]) + struct.pack(f"{order}HHIHH", *entries[1]) + bytes(4)
    exact = {"lossless": True} if kind == "WEBP" else {}
    content = encode(Image.fromarray(picture(0, (24, 20))), kind, exif=b"Exif\0\0" + exif, **exact)
    np.testing.assert_array_equal(
        decode_with_pillow(content)[..., :3], pictures.decode_image(content, DatasetSettings(source="x")).transpose(1, 2, 0)
    )
    assert container.strip_metadata(content)[1] == orientation


def test_truncated_or_empty_exif_does_not_rotate_the_image() -> None:
    whole_exif = b"II" + struct.pack("<HIHHHIHH", 42, 8, 1, 0x0112, 3, 1, 6, 0)
    assert container.read_orientation(whole_exif) == 6
    for length in range(20):
        assert container.read_orientation(whole_exif[:length]) == 1
    assert container.read_orientation(b"II" + struct.pack("<HIHHHIHH", 42, 8, 1, 0x0112, 3, 1, 9, 0)) == 1


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = encode(Image.fromarray(picture(0, (24, 24))))
JPEG = encode(Image.fromarray(picture(0, (24, 24))), "JPEG")


def exif_of_many_copies() -> bytes:
    """Make ten thousand entries for the same half megabyte: five gigabytes for a reader that keeps all of them."""
    entries = b"".join(struct.pack("<HHII", tag, 1, MIB // 2, 8) for tag in range(10_000))
    return b"II" + struct.pack("<HIH", 42, 8, 10_000) + entries + bytes(MIB)


def scans(count: int, size: int) -> bytes:
    """Make a progressive JPEG of ``size`` x ``size`` pixels in which every scan has a few bytes."""
    table = b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1]) * 64
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, size, size, 1) + bytes([1, 0x11, 0])
    huffman = b"\xff\xc4" + struct.pack(">HB", 20, 0x10) + bytes([1, *[0] * 15]) + b"\xe0"  # the only code: EOBRUN of 2^14
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([1, 0, 1, 63, 0]) + bytes((size // 8) ** 2 // 2**14 * 2 + 2)
    return b"\xff\xd8" + table + frame + huffman + scan * count + b"\xff\xd9"


HOSTILE: dict[str, Callable[[], bytes]] = {
    "five million parts.png": lambda: PNG[:33] + b"\0\0\0\0abcd\0\0\0\0" * 5_000_000 + PNG[33:],
    "five million empty parts of pixels.png": lambda: PNG[:33] + chunk(b"IDAT", b"") * 5_000_000 + PNG[33:],
    "copies in exif.png": lambda: PNG[:33] + chunk(b"eXIf", exif_of_many_copies()) + PNG[33:],
    "text.png": lambda: PNG[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60 * MIB))) * 20 + PNG[33:],
    "profile.png": lambda: PNG[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(60 * MIB))) + PNG[33:],
    "fill.jpg": lambda: JPEG[:2] + b"\xff" * (60 * MIB) + b"\0" + JPEG[2:],
    "junk.jpg": lambda: JPEG[:2] + b"\x11" * (60 * MIB) + JPEG[2:],
    "comments.jpg": lambda: JPEG[:2] + b"\xff\xfe\0\2" * 5_000_000 + JPEG[2:],
    "copies in exif.jpg": lambda: (
        JPEG[:2]
        + b"".join(
            b"\xff\xe1" + struct.pack(">H", 60_008) + b"Exif\0\0" + exif_of_many_copies()[at : at + 60_000]
            for at in range(0, MIB, 60_000)
        )
        + JPEG[2:]
    ),
    "a million scans.jpg": lambda: scans(1_000_000, 64),
    "scans of many pixels.jpg": lambda: scans(99, 8_000),
    "claims.jpg": lambda: scans(1, 8_000),
    "frames.webp": lambda: _riff(5_000_000),
    "entries that share bytes.tif": lambda: (
        tiff(ONES, extra={40_000 + tag: ("B", 0, 50 * MIB) for tag in range(900)}) + bytes(51 * MIB)
    ),
    "65,000 entries.tif": lambda: tiff(ONES, extra=dict.fromkeys(range(400, 65400), ("I", 0, 1))),
    "strips that share bytes.tif": lambda: (
        tiff(ONES, {259: ("H", 5, 1), 278: ("I", 1, 1), 273: ("I", 8, 64), 279: ("I", 8, 64)}) + bytes(60 * MIB)
    ),
    "a long entry.tif": lambda: tiff(ONES, {338: ("H", 8, 10_000_000)}) + bytes(20 * MIB),
    "large tile.tif": lambda: tiff(ONES, {322: ("I", 1 << 15, 1), 323: ("I", 1 << 15, 1), 324: ("I", 8, 1), 325: ("I", 64, 1)}),
    "claims.tif": lambda: tiff(ONES, {256: ("I", 30_000, 1), 257: ("I", 2_000, 1), 259: ("H", 5, 1)}),
    "endless pages.tif": lambda: tiff(ONES, {254: ("I", 1, 1)}, following=8 + ONES.nbytes + 2),
    "runs.bmp": lambda: _bmp(1) + b"\1\7" * 30_000_000,
    "claims.bmp": lambda: _bmp(0),
}
ONES = np.ones((64, 64, 1), np.uint8)


def _bmp(compression: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 8_000, 8_000, 1, 8, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(header) + 1024) + header + bytes(1024)


UNTOUCHED = {
    "copies in exif.png",
    "text.png",
    "profile.png",
    "copies in exif.jpg",
    "fill.jpg",
    "junk.jpg",
    "entries that share bytes.tif",
    "endless pages.tif",
}  # still decoded


def _riff(count: int) -> bytes:
    parts = b"ABCD\0\0\0\0" * count
    return b"RIFF" + struct.pack("<I", len(parts) + 4) + b"WEBP" + parts


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_images_that_would_exhaust_a_decoder_are_set_aside(read: Reader, tmp_path: Path, name: str) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/good.png").write_bytes(PNG)
    (tmp_path / "pets" / name).write_bytes(HOSTILE[name]())
    (found,) = read("images", tmp_path / "pets")
    assert found.ended == "read" and set(found.notes["aside"]) == ({name} - UNTOUCHED), found
    assert found.grown < 300 * MIB, found


def test_pages_of_a_tiff_are_refused_but_not_its_smaller_copies() -> None:
    pages = encode(Image.fromarray(picture(0)), "TIFF", save_all=True, append_images=[Image.fromarray(picture(1))])
    with pytest.raises(container.HostileImage, match="has more than one page: save each page as a file"):
        container.strip_metadata(pages)
    alone = tiff(picture(0))
    small = tiff(picture(1, (3, 2)), {254: ("I", 1, 1)}, start=len(alone))
    both = alone[:-4] + small[4:8] + small[8:]
    np.testing.assert_array_equal(pictures.decode_image(both, DatasetSettings(source="x")).transpose(1, 2, 0), picture(0))


def test_orientation_of_a_tiff() -> None:
    x_HWC = picture(0)
    turned = pictures.decode_image(tiff(x_HWC, {274: ("H", 6, 1)}), DatasetSettings(source="x"))
    np.testing.assert_array_equal(turned.transpose(1, 2, 0), np.rot90(x_HWC, -1))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({259: ("H", 7, 1)}, "is a TIFF whose compression is not read: save it with LZW or deflate, or as PNG"),
        ({258: ("H", 16, 1), 262: ("H", 0, 1)}, "is a TIFF in which 0 is white: save it as PNG"),
    ],
)
def test_forms_of_tiff_that_are_not_read_are_named(entries: dict[int, tuple[str, int, int]], expected: str) -> None:
    with pytest.raises(container.HostileImage, match=expected):
        container.strip_metadata(tiff(ONES, entries))


@pytest.mark.parametrize("start", [b"II+\0", b"MM\0+"])
def test_a_bigtiff_is_named(start: bytes) -> None:
    with pytest.raises(container.HostileImage, match="is a BigTIFF: save it as TIFF or PNG"):
        container.strip_metadata(start + bytes(100))
