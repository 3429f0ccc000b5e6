"""Decoder of one image file, by Pillow and within limits: to 8-bit grey or RGB, upright, and of the wanted size.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from remint.data.container import HostileImage, spread_levels, strip_metadata
from remint.data.formats import HEAD, PICTURES, identify
from remint.data.images import resize_image
from remint.data.values import WHOLE_BITS, to_8_bits
from remint.settings.dataset import DatasetSettings

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # by Pillow's names
KNOWN = "PNG, JPEG, WebP, TIFF or BMP"
GREY = {"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow's modes without colour
PALETTES = ("P", "PA")
OTHER_ORDER = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B"}  # Pillow's raw modes of 16 bits that read the lower byte
UNREAD = {
    **dict.fromkeys(
        ("I", "F"), "holds fractions, signed or 32-bit values: save it with 8 or 16 bits, or all images in one .npy file"
    ),
    "LAB": "has colours in L*a*b*: save it as RGB",
}

MOST_PIXELS = 1 << 26  # of one file: 67 million, 200 MB as RGB. A larger one is a bomb or no training image
MOST_RATIO = 1_000  # pixels for each byte of the file, after FREE_PIXELS: above every JPEG, near the limit of deflate
FREE_PIXELS = 1 << 22

# EXIF orientation -> transposition that makes the image upright.
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.MAX_IMAGE_PIXELS = MOST_PIXELS

# Errors of Pillow for damaged or false content. The bytes are in memory, so an OSError never comes from the disk.
UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

Array = np.ndarray[Any, Any]


@dataclass
class Facts:
    """Decisions about all files of a source, and the facts of the files that were decoded."""

    bits: int = WHOLE_BITS  # of the values in 16-bit files
    colour: bool = False  # the schema says that images whose palette has greys only are colour images
    lowest: int = 1 << WHOLE_BITS  # value in 16-bit files
    highest: int = -1  # the same; below 0: there were no such files
    modes: set[str] = field(default_factory=set)  # Pillow's names


class Undecodable(Exception):
    """Reason why a file is set aside."""


def decode_image(content: bytes, settings: DatasetSettings, facts: Facts | None = None) -> Array:
    """Decode one file to uint8 (C, H, W). ``facts`` takes note of it. Raises Undecodable with the reason."""
    facts = facts or Facts(settings.bits or WHOLE_BITS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damage, and about sizes that are checked below
            essential, orientation = strip_metadata(content)
            file = _open(essential)
            _check_pixels(file.width, file.height, len(content))
            raw_mode = _raw_mode(file)
            image: Image.Image = file
            image.load()
            grey = image.mode in GREY or raw_mode.startswith("LA")
            facts.modes.add(image.mode)
            x_deep = _sixteen_bits(image, raw_mode, essential)
            if x_deep is not None:
                image = _narrow(image, x_deep, facts)
            image = image if orientation == 1 else image.transpose(TRANSPOSES[orientation])
            image = _to_8_bit(image, grey, settings.channels, facts.colour)
            if settings.levels is not None and settings.levels == spread_levels(content):
                image = image.point([round(value * (settings.levels - 1) / 255) for value in range(256)] * len(image.getbands()))
    except HostileImage as error:
        raise Undecodable(str(error)) from error
    except UNDECODABLE as error:
        if isinstance(error, Image.DecompressionBombError):
            raise Undecodable(str(error)) from error
        reason = _name_content(content) if isinstance(error, UnidentifiedImageError) else "is damaged or cut off"
        raise Undecodable(reason) from error
    x_HWC = np.asarray(image)
    if settings.resize is not None:
        highest = x_HWC.max()
        x_HWC = np.asarray(resize_image(image, settings.resize))
        if settings.levels and highest < settings.levels:
            x_HWC = np.minimum(x_HWC, highest)  # a filter with negative lobes overshoots
    return np.ascontiguousarray(np.atleast_3d(x_HWC).transpose(2, 0, 1))


def _name_content(content: bytes) -> str:
    """Return what a file is that Pillow does not know, as the rest of a sentence."""
    shown = identify(content[:HEAD])
    if shown is None:
        return "is not an image"
    if shown.remedy == PICTURES:  # of a format that Pillow reads
        return "is damaged or cut off"
    return f"is {shown.name}, not an image" if "{" in shown.remedy else f"is {shown.name}: {shown.remedy}"


def _open(essential: bytes) -> ImageFile:
    image = Image.open(io.BytesIO(essential), formats=FORMATS)
    assert isinstance(image, ImageFile)
    return image


def _raw_mode(image: ImageFile) -> str:
    """Return Pillow's name for the form of the pixels in the file; nothing if the format has none (WebP)."""
    arguments = image.tile[0].args if image.tile else None
    return str(arguments[0]) if isinstance(arguments, tuple) and arguments else str(arguments or "")


def _sixteen_bits(image: Image.Image, raw_mode: str, essential: bytes) -> Array | None:
    """Return the values of a loaded image with 16 bits for each, uint16 (H, W, C); None if it has fewer.

    Pillow keeps the upper byte of colours only. The lower byte is what it reads where the order of bytes is exchanged.
    """
    if image.mode.startswith("I;16"):
        return np.atleast_3d(np.asarray(image).astype(np.uint16))
    if raw_mode[-4:] not in OTHER_ORDER:
        return None
    other = _open(essential)
    form = "RGBA" if raw_mode == "LA;16B" else raw_mode[:-4] + OTHER_ORDER[raw_mode[-4:]]
    other.tile = [
        part._replace(args=form if isinstance(part.args, str) else (form, *(part.args or ())[1:])) for part in other.tile
    ]
    low_HWC = np.asarray(other).astype(np.uint16)
    if raw_mode == "LA;16B":  # upper and lower byte of grey and of opacity, as if they were four colours
        grey_HW, alpha_HW = (low_HWC[..., band] << 8 | low_HWC[..., band + 1] for band in (0, 2))
        return np.stack([grey_HW, grey_HW, grey_HW, alpha_HW], axis=2)
    return np.asarray(image).astype(np.uint16) << 8 | low_HWC


def _narrow(image: Image.Image, x_HWC: Array, facts: Facts) -> Image.Image:
    """Return the image with 8 bits for each value, and take note of the range of those that are no opacity.

    A value or colour that the file says is transparent (tRNS of a PNG) becomes white.
    """
    clear = image.info.get("transparency")
    clear_HW = (x_HWC == np.asarray(clear)).all(axis=2) if isinstance(clear, int | tuple) else np.zeros(x_HWC.shape[:2], bool)
    shown_HWC = x_HWC[..., : 3 if image.mode in ("RGBA", "RGBa") else None]
    facts.lowest = min(facts.lowest, int(shown_HWC.min()))
    facts.highest = max(facts.highest, int(shown_HWC.max()))
    mode = "L" if x_HWC.shape[2] == 1 else image.mode
    narrow_HWC = to_8_bits(x_HWC, facts.bits)
    narrow_HWC[clear_HW] = 255
    return Image.frombytes(mode, image.size, narrow_HWC.tobytes())


def _check_pixels(width: int, height: int, size: int) -> None:
    """Raise Undecodable if an image claims more pixels than the limit, or than ``size`` bytes can hold."""
    if width * height > MOST_PIXELS:
        raise Undecodable(f"claims {width} x {height} pixels, more than {MOST_PIXELS:,}")
    if width * height > MOST_RATIO * size + FREE_PIXELS:
        raise Undecodable(f"claims {width} x {height} pixels in {size:,} bytes: it is damaged or a decompression bomb")


def _to_8_bit(image: Image.Image, grey: bool, channels: int | None, colour: bool) -> Image.Image:
    """Return the image as 8-bit grey or RGB: by ``channels``, else by its content.

    A palette of greys is ``grey``, unless the schema says that such images have ``colour``.
    """
    if image.mode in UNREAD:
        raise HostileImage(UNREAD[image.mode])
    palette = image.mode in PALETTES
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        background.alpha_composite(image.convert("RGBA"))
        image = background
    rgb = image.convert("RGB")
    if palette and not colour:
        red, green, blue = (np.asarray(band) for band in rgb.split())
        grey = bool((red == green).all() and (green == blue).all())
    return rgb.convert("L") if (channels or (1 if grey else 3)) == 1 else rgb
