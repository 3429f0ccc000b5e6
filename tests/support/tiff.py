"""Writer of TIFF files with any entries, also those that no program writes."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

KINDS = {"B": 1, "H": 3, "I": 4}

Entry = tuple[str, int, int]  # struct's letter of the type, value or place of the values, number of values


def tiff(
    x_HWC: np.ndarray[Any, Any],
    entries: dict[int, Entry] | None = None,
    *,
    extra: dict[int, Entry] | None = None,
    order: str = "<",
    following: int = 0,
    start: int = 0,
) -> bytes:
    """Write one uncompressed strip, then the directory.

    ``entries``, ``extra``: entries in place of the usual ones, and beside them. ``following``: place of the next directory.
    ``start``: place of the file's first pixel in a larger file, from 8.
    """
    height, width, channels = x_HWC.shape
    bits = 8 * x_HWC.dtype.itemsize
    pixels = x_HWC.astype(x_HWC.dtype.newbyteorder(order)).tobytes()
    first = start or 8
    every = struct.pack(f"{order}{channels}H", *[bits] * channels)
    values: dict[int, Entry] = {
        256: ("I", width, 1),
        257: ("I", height, 1),
        258: ("H", bits, 1) if channels == 1 else ("H", first + len(pixels), channels),
        259: ("H", 1, 1),
        262: ("H", 2 if channels > 1 else 1, 1),
        273: ("I", first, 1),
        277: ("H", channels, 1),
        278: ("I", height, 1),
        279: ("I", len(pixels), 1),
        **(entries or {}),
        **(extra or {}),
    }
    place = first + len(pixels) + len(every)
    written = b"".join(
        struct.pack(f"{order}HHI", tag, KINDS[form], count)
        + struct.pack(f"{order}{form if count == 1 else 'I'}", value).ljust(4, b"\0")
        for tag, (form, value, count) in sorted(values.items())
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", place)
    return head + pixels + every + struct.pack(f"{order}H", len(values)) + written + struct.pack(f"{order}I", following)
