"""Image files of the formats that Pillow writes, and random mutations of them, each a function of a random generator."""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

READ_SUFFIXES = (".png", ".jpg", ".webp", ".bmp", ".tiff")  # endings that remint reads; other images are set aside unread
OTHER_SUFFIXES = (".gif",)
NUMBERS = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _picture(size: tuple[int, int], channels: int) -> np.ndarray[Any, Any]:
    x_HWC = np.random.default_rng(size[0]).integers(256, size=(*size, channels), dtype=np.uint8)
    x_HWC[: size[0] // 2] //= 64  # one half is noise, the other half compresses well
    return x_HWC if channels > 1 else x_HWC[:, :, 0]


def _written(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@cache
def valid_files() -> list[tuple[str, bytes]]:
    """Return (ending, content) of valid files: grey, colour, palettes, transparency, 16 bits, animations, EXIF, text, scans."""
    grey, colour, alpha = (Image.fromarray(_picture((24, 20), channels)) for channels in (1, 3, 4))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "somewhere"
    text = {"exif": exif.tobytes(), "icc_profile": bytes(300)}
    frames = {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)]}
    deep = Image.fromarray(_picture((24, 20), 1).astype(np.uint16) * 257)
    return [
        *((".png", _written(image, "PNG")) for image in (grey, colour, alpha, deep, grey.convert("1"), grey.convert("LA"))),
        (".png", _written(colour.quantize(16), "PNG", transparency=3)),
        (".png", _written(colour, "PNG", **text)),
        (".png", _written(colour, "PNG", **frames)),
        *((".jpg", _written(image, "JPEG")) for image in (grey, colour, colour.convert("CMYK"))),
        (".jpg", _written(colour, "JPEG", progressive=True, comment=b"said", **text)),
        (".jpg", _written(colour, "JPEG", quality=30, subsampling=2, optimize=True, restart_marker_blocks=2)),
        *((".webp", _written(image, "WEBP", lossless=lossless)) for image in (colour, alpha) for lossless in (False, True)),
        (".webp", _written(colour, "WEBP", **text)),
        (".webp", _written(colour, "WEBP", **frames)),
        *((".bmp", _written(image, "BMP")) for image in (grey, colour)),
        (".gif", _written(colour, "GIF", **frames)),
        *((".tiff", _written(colour, "TIFF", compression=how)) for how in ("raw", "tiff_lzw", "tiff_deflate")),
        (".tiff", _written(deep, "TIFF", compression="tiff_lzw", exif=exif)),
        (".tif", _written(colour, "TIFF", compression="jpeg")),  # set aside
    ]


def mutate_file(choose: random.Random) -> tuple[str, bytes]:
    """Return (ending, content) of a valid file after one to four mutations; one in five has a wrong ending."""
    ending, content = choose.choice([each for each in valid_files() if each[0] in READ_SUFFIXES or choose.random() < 0.3])
    out = bytearray(content)
    for _ in range(choose.choice((1, 1, 2, 4))):
        choose.choice(MUTATIONS)(out, choose)
    if choose.random() < 0.7:
        _seal(out)
    return (choose.choice((*READ_SUFFIXES, *READ_SUFFIXES, *OTHER_SUFFIXES)) if choose.random() < 0.2 else ending), bytes(out)


def _seal(out: bytearray) -> None:
    """Correct the checksums of a PNG's parts: after a wrong one, a decoder stops reading."""
    at = 8
    while out.startswith(b"\x89PNG") and at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 <= len(out):
            out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end]))
        at = end + 4


def _place(out: bytearray, choose: random.Random) -> int:
    """Draw any position or, equally often, one in the first hundred bytes, which hold headers."""
    return choose.randrange(min(len(out), choose.choice((100, len(out)))) or 1)


def _flip(out: bytearray, choose: random.Random) -> None:
    for _ in range(choose.choice((1, 1, 4, 30))):
        if out:
            out[_place(out, choose)] ^= 1 << choose.randrange(8)


def _overwrite(out: bytearray, choose: random.Random) -> None:
    at = _place(out, choose)
    out[at : at + choose.randint(1, 8)] = choose.randbytes(choose.randint(1, 8))


def _number(out: bytearray, choose: random.Random) -> None:
    """Draw a length, size or offset at a boundary of its range."""
    number, form = choose.choice(NUMBERS), choose.choice("<>") + choose.choice("BHI")
    size = struct.calcsize(form)
    at = _place(out, choose)
    out[at : at + size] = struct.pack(form, number & (256**size - 1))


def _cut(out: bytearray, choose: random.Random) -> None:
    del out[_place(out, choose) :]


def _drop(out: bytearray, choose: random.Random) -> None:
    at = _place(out, choose)
    del out[at : at + choose.randint(1, 64)]


def _repeat(out: bytearray, choose: random.Random) -> None:
    at, length = _place(out, choose), choose.choice((1, 12, 100, len(out)))
    out[at:at] = bytes(out[at : at + length]) * choose.choice((1, 2, 50))


def _splice(out: bytearray, choose: random.Random) -> None:
    _, other = choose.choice(valid_files())
    at, there = _place(out, choose), choose.randrange(len(other))
    out[at : at + choose.choice((0, 40, len(out)))] = other[there : there + choose.choice((40, len(other)))]


def _blank(out: bytearray, choose: random.Random) -> None:
    at = _place(out, choose)
    out[at : at + 40] = choose.choice((b"\0", b"\xff")) * 40


MUTATIONS = (_flip, _flip, _overwrite, _number, _number, _cut, _drop, _repeat, _splice, _blank)
