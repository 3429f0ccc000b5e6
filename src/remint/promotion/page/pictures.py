"""Arrays as pictures inside the page: PNG files as data addresses.

Shapes: N examples, C channels, H height, W width.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from remint.evaluation import drawing

MAGNIFIED = 640  # pixels; a sheet is magnified by whole numbers up to this width, so that no browser blurs it
WIDEST = 1280  # pixels; a wider sheet is reduced, so that the page stays small

Array = np.ndarray[Any, Any]


def png(data: bytes) -> str:
    """Return the data address of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def sheet(x_NCHW: Array, levels: int, columns: int) -> str:
    """Return images row by row, with a white gap between them."""
    tiled = drawing.tile(x_NCHW, levels, columns)
    image = Image.fromarray(np.round(255.0 * tiled).astype(np.uint8))
    factor = max(1, MAGNIFIED // image.width)
    size = (image.width * factor, image.height * factor)
    if image.width > WIDEST:
        size = (WIDEST, round(image.height * WIDEST / image.width))
    resized = image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)
    grey = resized.convert("L") if x_NCHW.shape[1] < 3 else resized
    stream = io.BytesIO()
    grey.save(stream, "PNG", optimize=True)
    return png(stream.getvalue())


def single(x_CHW: Array, levels: int) -> str:
    """Return one image without a frame."""
    colours = np.asarray(x_CHW[:3] if len(x_CHW) >= 3 else np.repeat(x_CHW[:1], 3, axis=0))
    image = Image.fromarray(np.round(255.0 * colours.transpose(1, 2, 0) / (levels - 1)).astype(np.uint8))
    factor = max(1, MAGNIFIED // 5 // max(image.size))
    if max(image.size) > MAGNIFIED // 5:
        image.thumbnail((MAGNIFIED // 5, MAGNIFIED // 5), Image.Resampling.BOX)
    resized = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    (resized.convert("L") if len(x_CHW) < 3 else resized).save(stream, "PNG", optimize=True)
    return png(stream.getvalue())
