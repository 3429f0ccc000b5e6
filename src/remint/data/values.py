"""Values of images: from those that a source holds to integers 0 .. levels-1. Each decision is said with its reason.

A decision holds for the whole dataset, and the schema keeps it: later data are read as the first were, or do not fit.

    16 bits      values that all stay below 2^8, 2^10, 2^12 or 2^14 are divided by 1, 4, 16 or 64, others by 256 (``bits``)
    two values   truth values, 0 and 1, and 1-bit files are 2 levels (``levels``)
    fractions    n/255 and n/127.5 - 1 are 256 levels; other fractions are refused

Values are read in blocks (blocks.py), and each decision looks at all of them.

Shapes: N images, B images of one block, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from remint.data.blocks import Blocks
from remint.errors import DataError
from remint.records import DataSpec
from remint.runtime.events import emit
from remint.settings.dataset import DatasetSettings

IMAGE_LEVELS = 256  # default of file sources: 8-bit images
WHOLE_BITS = 16
USED_BITS = (8, 10, 12, 14)  # of cameras, scanners and X-ray detectors, which write them into 16 bits
DARK = 127  # if no value of all images is above it, a person is told
QUARTER, FEW = 63, 1e-3  # the same if a share of FEW values of 16 bits is above QUARTER: hot pixels make the others black
FEW_LEVELS = (2, 4, 16)  # of images of 1, 2 and 4 bits, spread over 0 .. 255
TOLERANCE = 1e-3  # of n/255 from a whole number n, in single and double precision
HALF_TOLERANCE = 0.1  # the same in half precision

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Raw:
    """Image source as read: unchecked arrays, and the name of the source for errors."""

    where: str
    x: Blocks
    y: Array | None
    levels: int
    channels_first: bool = False  # known to be (N, C, H, W), for any lengths of the axes
    class_names: tuple[str, ...] = ()
    bits: int | None = None  # of the values in 16-bit files; None: there are none
    one_bit: bool = False  # every file has one bit for each pixel, read as 0 and 255
    decision: str = ""  # of the reader, about the values
    set_aside: Mapping[str, str] = field(default_factory=dict)  # unusable file -> reason
    names: tuple[str, ...] = ()  # path of each image in its folder or archive, if it has one


@dataclass(frozen=True)
class Values:
    """Values of all images, and how they were read."""

    x_NCHW: Blocks
    levels: int
    found: str  # range of the values, as the source holds them
    bits: int | None = None  # of values in 16 bits; None: there were none
    decision: str = ""  # if it is not obvious


def used_bits(highest: int) -> int:
    """Return how many bits the values up to ``highest`` use: 8, 10, 12, 14 or 16."""
    return next((bits for bits in USED_BITS if highest < 1 << bits), WHOLE_BITS)


def to_8_bits(x: Array, bits: int) -> Array:
    """Return values of ``bits`` bits as uint8, any shape. Values beyond the range become 255."""
    narrow: Array = np.minimum(x >> (bits - 8), 255).astype(np.uint8)
    return narrow


def describe_bits(lowest: int, highest: int, bits: int) -> str:
    """Return the decision about values in 16 bits."""
    way = "not divided" if bits == 8 else f"divided by {1 << (bits - 8)}"
    return f"{lowest} .. {highest} in 16 bits: read as {bits} bits, {way} (setting bits)"


def read_values(name: str, settings: DatasetSettings, raw: Raw, x_NCHW: Blocks, known: DataSpec | None) -> Values:
    """Return the values as integers 0 .. levels-1. ``known``: the spec in the schema.

    Raises DataError, in one line, for values that are not levels.
    """
    levels, bits, decision = settings.levels or raw.levels, raw.bits, ""
    if x_NCHW.dtype.kind == "f":
        _refuse(lambda x_BCHW: ~np.isfinite(x_BCHW), raw.where, x_NCHW, "is not a finite number", "repair or drop those images")
    found = f"{x_NCHW.min():g} .. {x_NCHW.max():g}"
    if x_NCHW.dtype.kind == "f":
        x_NCHW, decision = _from_fractions(raw.where, x_NCHW, levels)
    if settings.bits and x_NCHW.dtype.itemsize > 1:
        x_NCHW, bits, decision = _from_bits(name, raw.where, x_NCHW, settings.bits)
    lowest, highest = int(x_NCHW.min()), int(x_NCHW.max())
    if settings.levels:
        if lowest >= 0 and levels <= highest < IMAGE_LEVELS:
            x_NCHW, decision = _from_multiples(x_NCHW, levels)
    elif levels == IMAGE_LEVELS and (known is None or known.levels == 2):
        if raw.one_bit and highest == 255 and _all_multiples(x_NCHW, 255):
            x_NCHW = x_NCHW.map(lambda x_BCHW: x_BCHW // 255)
            levels, decision = 2, "of one bit: read as 2 levels (levels: 256 keeps 0 and 255)"
        elif (lowest, highest) == (0, 1) or (known and lowest >= 0 and highest <= 1):
            levels, decision = 2, "0 and 1 only: read as 2 levels (levels: 256 reads them as two of 256)"
    used = used_bits(highest)
    remedy = f"set datasets.{name}.levels in params.yaml (at most 256), or rescale"
    if lowest < 0:
        remedy = f"add {-lowest} to all values" + (
            f", and set datasets.{name}.bits: {used_bits(highest - lowest)} in params.yaml"
            if highest - lowest >= IMAGE_LEVELS
            else ""
        )
    elif IMAGE_LEVELS <= highest < 1 << WHOLE_BITS and levels == IMAGE_LEVELS:
        remedy = f"set datasets.{name}.bits: {used} in params.yaml, which reads 0 .. {(1 << used) - 1} as 256 levels"
    _refuse(lambda x: (x < 0) | (x > levels - 1), raw.where, x_NCHW, f"is not in 0 .. {levels - 1}", remedy)
    if levels == IMAGE_LEVELS and settings.levels is None and not decision:
        decision = _describe_few(x_NCHW, highest)
    if bits is not None and levels == IMAGE_LEVELS:
        _say_if_few_are_bright(x_NCHW, bits)
    return Values(x_NCHW, levels, found, bits, decision)


def _say_if_few_are_bright(x_NCHW: Blocks, bits: int) -> None:
    """Tell a person that a few values, such as hot pixels, decided how many ``bits`` were read."""
    counts = np.zeros(IMAGE_LEVELS, np.int64)
    for x_BCHW in x_NCHW:
        counts += np.bincount(x_BCHW.ravel(), minlength=IMAGE_LEVELS)
    usual = int(np.argmax(counts.cumsum() >= (1 - FEW) * x_NCHW.size))
    if 0 < usual <= QUARTER < counts.nonzero()[0][-1]:
        used = used_bits(((usual + 1) << (bits - 8)) - 1)
        emit("hot", bits=used, most=(1 << used) - 1)


def _from_fractions(where: str, x_NCHW: Blocks, levels: int) -> tuple[Blocks, str]:
    """Return fractions that are levels beyond doubt as these. Raises DataError, with the formula, for all others."""
    lowest, highest = x_NCHW.min(), x_NCHW.max()
    if lowest >= 0 and not any(_is_fraction(x_BCHW).any() for x_BCHW in x_NCHW):
        return x_NCHW, ""
    remedy = "round them" if lowest >= 0 and highest <= levels - 1 else "undo the standardisation and round"
    for least, form in ((0, "n/255"), (-1, "n/127.5 - 1")):
        if least <= lowest and highest <= 1:
            factor = (levels - 1) / (1 - least)
            level_NCHW = x_NCHW.map(partial(_level, least=least, factor=factor))
            off = max(np.abs(level_BCHW - np.round(level_BCHW)).max() for level_BCHW in level_NCHW)
            if levels == IMAGE_LEVELS and off <= (TOLERANCE if x_NCHW.dtype.itemsize > 2 else HALF_TOLERANCE):
                whole_NCHW = level_NCHW.map(lambda level_BCHW: np.round(level_BCHW).astype(np.uint8))
                return whole_NCHW, f"{least} .. 1, and each is {form}: read as the 256 levels n"
            formula = f"np.round(x * {factor:g})" if least == 0 else f"np.round((x + 1) * {factor:g})"
            remedy = f"{'add 1, ' if least else ''}multiply by {factor:g} and round: {formula}"
            break
    _refuse(_is_fraction, where, x_NCHW, "is not an integer", f"{remedy}: values are levels 0 .. {levels - 1}")
    return x_NCHW, ""


def _is_fraction(x_BCHW: Array) -> Array:
    fraction_BCHW: Array = x_BCHW != np.floor(x_BCHW)
    return fraction_BCHW


def _level(x_BCHW: Array, least: int, factor: float) -> Array:
    return (x_BCHW.astype(np.float64) - least) * factor


def _from_bits(name: str, where: str, x_NCHW: Blocks, bits: int) -> tuple[Blocks, int, str]:
    lowest, highest = int(x_NCHW.min()), int(x_NCHW.max())
    remedy = f"correct datasets.{name}.bits in params.yaml, or clip the values"
    _refuse(lambda x: (x < 0) | (x >= 1 << bits), where, x_NCHW, f"is not in 0 .. {(1 << bits) - 1}", remedy)
    narrow_NCHW = x_NCHW.map(lambda x_BCHW: to_8_bits(x_BCHW.astype(np.int64), bits))
    return narrow_NCHW, bits, describe_bits(lowest, highest, bits)


def _from_multiples(x_NCHW: Blocks, levels: int) -> tuple[Blocks, str]:
    """Return values that are spread over 0 .. 255, such as 0 and 255 of 2 levels, as 0 .. levels-1."""
    step, rest = divmod(IMAGE_LEVELS - 1, levels - 1)
    if rest or not _all_multiples(x_NCHW, step):
        return x_NCHW, ""
    return x_NCHW.map(lambda x_BCHW: x_BCHW // step), f"multiples of {step}: divided by it, to {levels} levels"


def _describe_few(x_NCHW: Blocks, highest: int) -> str:
    """Return a sentence about images that use few of the 256 levels; nothing about others."""
    if 1 < highest <= DARK:
        return f"0 .. {highest} only, read as 256 levels, so nearly black: if there are no others, set levels: {highest + 1}"
    for levels in FEW_LEVELS if highest == IMAGE_LEVELS - 1 else ():
        step = (IMAGE_LEVELS - 1) // (levels - 1)
        if x_NCHW.min() == 0 and _all_multiples(x_NCHW, step):
            return f"multiples of {step} only, read as 256 levels: levels: {levels} reads them as 0 .. {levels - 1}"
    return ""


def _all_multiples(x_NCHW: Blocks, step: int) -> bool:
    return not any((x_BCHW % step).any() for x_BCHW in x_NCHW)


def _refuse(is_bad: Callable[[Array], Array], where: str, x_NCHW: Blocks, wrong: str, remedy: str) -> None:
    """Raise DataError if values are bad. It names the first one, its image, and the number of such images."""
    images: list[Array] = []
    values: list[Any] = []
    at = 0
    for x_BCHW in x_NCHW:
        bad_BCHW = is_bad(x_BCHW)
        if bad_BCHW.any():
            images.append(at + np.flatnonzero(bad_BCHW.any(axis=(1, 2, 3))))
            values.append(x_BCHW[bad_BCHW][0])
        at += len(x_BCHW)
    if images:
        which = f"{sum(map(len, images))} of {len(x_NCHW)} images, the first at index {images[0][0]}"
        raise DataError(f"{where}: x: value {values[0]} {wrong} ({which}): {remedy}")
