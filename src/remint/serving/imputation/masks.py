"""Which values of images are missing: as a mask, or as the transparent pixels of the images themselves.

    a mask    bool or numbers, missing where not 0: (H, W) for all images, (N, H, W), or (N, C, H, W); an array, .npy or a picture
    alpha     images with one more channel, in files or an array (N, H, W, C + 1): missing where alpha is 0

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from remint.errors import DataError
from remint.records import DataSpec
from remint.serving.inputs import IMAGE_FILES
from remint.serving.outputs import MODES

Array = np.ndarray[Any, Any]


def split(spec: DataSpec, data: Any, missing: Any) -> tuple[Any, Array]:
    """Return images as inputs.read takes them, and their mask, bool (N or 1, C, H, W).

    Raises DataError if there is neither a mask nor an alpha channel, or if the mask has another size.
    """
    if missing is not None:
        return data, _broadcast(spec, _read(missing), str(missing) if isinstance(missing, str | Path) else "the mask")
    if isinstance(data, str | Path):
        paths = _pictures(Path(data))
        if paths:
            pairs = [_from_alpha(spec, path) for path in paths]
            return np.stack([x for x, _ in pairs]), _broadcast(spec, np.stack([mask for _, mask in pairs]), str(data))
    elif np.ndim(data) == 4 and np.shape(data)[1:] == (*spec.image[1:], spec.image[0] + 1):
        x_NHWC = np.asarray(data)
        gone_NHW = x_NHWC[..., -1] == 0
        return np.where(gone_NHW[..., None], 0, x_NHWC[..., :-1]), _broadcast(spec, gone_NHW, "the array")
    raise DataError("no value of these images is missing: give a mask, or images with an alpha channel")


def _read(missing: Any) -> Array:
    if not isinstance(missing, str | Path):
        return np.asarray(missing)
    try:
        if Path(missing).suffix.lower() == ".npy":
            return np.asarray(np.load(missing, allow_pickle=False))
        with Image.open(missing) as image:
            return np.asarray(image.convert("L"))
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{missing} is no mask: give a picture or an .npy file") from error


def _broadcast(spec: DataSpec, mask: Array, where: str) -> Array:
    c, h, w = spec.image
    if mask.shape[-2:] != (h, w) or mask.ndim not in (2, 3, 4) or (mask.ndim == 4 and mask.shape[1] not in (1, c)):
        raise DataError(f"{where}: a mask of shape {mask.shape}: expected ({h}, {w}), (N, {h}, {w}) or (N, {c}, {h}, {w})")
    mask = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    missing_NCHW: Array = np.broadcast_to(mask, (len(mask), c, h, w)) != 0
    return missing_NCHW


def _pictures(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() in IMAGE_FILES else []
    return sorted(each for each in path.rglob("*") if each.suffix.lower() in IMAGE_FILES and each.is_file())


def _from_alpha(spec: DataSpec, path: Path) -> tuple[Array, Array]:
    """Return one picture, (H, W, C), with 0 where it is transparent, and where that is, bool (H, W)."""
    c, h, w = spec.image
    try:
        with Image.open(path) as image:
            if image.size != (w, h):
                raise DataError(f"{path} has {image.size[1]} x {image.size[0]} pixels, and the model {h} x {w}")
            if "A" not in image.getbands() and "transparency" not in image.info:
                raise DataError(f"{path} has no alpha channel: give a mask, or make what is missing transparent")
            gone_HW = np.asarray(image.convert("RGBA"))[..., 3] == 0
            x_HWC = np.asarray(image.convert("RGBA").convert(MODES[c])).reshape(h, w, c)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, KeyError) as error:
        raise DataError(f"{path} cannot be read as an image of {c} channels with alpha") from error
    return np.where(gone_HW[..., None], 0, x_HWC).astype(np.uint8), gone_HW
