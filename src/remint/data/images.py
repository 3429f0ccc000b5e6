"""Checks and conversions of images to the form of every later step: uint8 (N, C, H, W), values 0 .. levels-1, one size.

Shapes: N examples, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from remint.errors import DataError
from remint.records import DataSpec
from remint.settings.recipe import DatasetSettings, ResizeSettings

IMAGE_LEVELS = 256  # default of file sources: 8-bit images
MOST_CLASSES = 10_000  # a larger label is a mistake (an identifier, a time), not a class number
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA: an axis of this length counts as the channel axis

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Raw:
    """Image source as read: unchecked arrays, and the name of the source for errors."""

    where: str
    x: Array
    y: Array | None
    levels: int
    channels_first: bool = False  # known to be (N, C, H, W), for any lengths of the axes
    class_names: tuple[str, ...] = ()
    set_aside: Mapping[str, str] = field(default_factory=dict)  # unusable file -> reason
    names: tuple[str, ...] = ()  # path of each image in its folder or archive, if it has one


def check_images(name: str, settings: DatasetSettings, raw: Raw) -> Array:
    """Return the images as uint8 (N, C, H, W), resized. Raises DataError, in one line, if they do not fit."""
    levels = settings.levels or raw.levels
    if raw.x.dtype.kind not in "buif":
        raise DataError(f"{raw.where}: x holds {raw.x.dtype}, not numbers: save it as integers 0 .. {levels - 1}")
    if raw.x.size == 0:
        raise DataError(f"{raw.where}: x is empty (shape {raw.x.shape}): add images to it")
    x_NCHW = _channels_first(name, settings, raw)
    if settings.channels not in (None, x_NCHW.shape[1]):
        raise DataError(
            f"{raw.where}: x has {x_NCHW.shape[1]} channels, but params.yaml: datasets.{name}.channels is "
            f"{settings.channels}: remove the setting, which only converts image files"
        )
    _check_values(name, raw.where, x_NCHW, levels)
    x_NCHW = np.ascontiguousarray(x_NCHW, dtype=np.uint8)
    return x_NCHW if settings.resize is None else resize_images(x_NCHW, settings.resize, levels)


def resize_images(x_NCHW: Array, resize: ResizeSettings, levels: int) -> Array:
    """Resize each channel of each image separately, as Pillow does, for any number of channels."""
    if list(x_NCHW.shape[2:]) == resize.size:
        return x_NCHW
    n, c = x_NCHW.shape[:2]
    out_NCHW = np.empty((n, c, *resize.size), np.uint8)
    for x_HW, out_HW in zip(x_NCHW.reshape(n * c, *x_NCHW.shape[2:]), out_NCHW.reshape(n * c, *resize.size), strict=True):
        out_HW[:] = np.asarray(resize_image(Image.fromarray(x_HW), resize))
    return np.minimum(out_NCHW, levels - 1, out=out_NCHW)  # a filter with negative lobes overshoots


def resize_image(image: Image.Image, resize: ResizeSettings) -> Image.Image:
    """Return the image as H x W: its largest centred crop of that aspect ratio, resampled, or the image padded with zeros.

    Raises DataError if an image is too large for padding.
    """
    height, width = resize.size
    if image.size == (width, height):
        return image
    if resize.filter == "pad":
        if image.width > width or image.height > height:
            raise DataError(
                f"an image of {image.height}x{image.width} does not fit into resize.size {height}x{width} with filter pad"
            )
        padded = Image.new(image.mode, (width, height))
        padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return padded
    scale = min(image.width / width, image.height / height)
    part_width, part_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (image.width - part_width) // 2, (image.height - part_height) // 2
    method = Image.Resampling[resize.filter.upper()]
    return image.resize((width, height), method, box=(left, top, left + part_width, top + part_height))


def _channels_first(name: str, settings: DatasetSettings, raw: Raw) -> Array:
    """Return (N, H, W), (N, C, H, W) or (N, H, W, C) as (N, C, H, W).

    With ``shape:`` in params.yaml the array must have that shape, channels first or last. Without it, the axis of length
    1, 3 or 4 is the channel axis. Raises DataError if both axes or neither have such a length.
    """
    x = raw.x
    if raw.channels_first and settings.shape in (None, list(x.shape[1:])):
        return x
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4:
        raise DataError(f"{raw.where}: x has shape {raw.x.shape}: expected (N, H, W), (N, C, H, W) or (N, H, W, C)")
    if settings.shape is not None:
        c, h, w = settings.shape
        if x.shape[1:] == (c, h, w):
            return x
        if x.shape[1:] == (h, w, c):
            return x.transpose(0, 3, 1, 2)
        raise DataError(
            f"{raw.where}: x has images of shape {raw.x.shape[1:]}, but params.yaml: datasets.{name}.shape is "
            f"{settings.shape} (C, H, W): correct one of them"
        )
    if raw.x.ndim == 3:
        return x
    first, last = x.shape[1] in CHANNELS, x.shape[3] in CHANNELS
    if first == last:
        raise DataError(
            f"{raw.where}: x has shape {raw.x.shape}, and its channel axis is ambiguous: "
            f"set datasets.{name}.shape in params.yaml to [C, H, W]"
        )
    return x if first else x.transpose(0, 3, 1, 2)


def _check_values(name: str, where: str, x_NCHW: Array, levels: int) -> None:
    """Raise DataError unless every value is one of the integers 0 .. levels-1."""
    if x_NCHW.dtype.kind == "f":
        _refuse(~np.isfinite(x_NCHW), where, x_NCHW, "is not a finite number", "repair or drop those images")
        scale = f"multiply by {levels - 1} and round" if x_NCHW.min() >= 0 and x_NCHW.max() <= 1 else "round them"
        _refuse(x_NCHW != np.floor(x_NCHW), where, x_NCHW, "is not an integer", f"{scale}: values are levels 0 .. {levels - 1}")
    remedy = f"set datasets.{name}.levels in params.yaml (at most 256), or rescale"
    _refuse((x_NCHW < 0) | (x_NCHW > levels - 1), where, x_NCHW, f"is not in 0 .. {levels - 1}", remedy)


def _refuse(bad_NCHW: Array, where: str, x_NCHW: Array, wrong: str, remedy: str) -> None:
    if bad_NCHW.any():
        images = np.flatnonzero(bad_NCHW.any(axis=(1, 2, 3)))
        value = x_NCHW[bad_NCHW][0]
        which = f"{len(images)} of {len(x_NCHW)} images, the first at index {images[0]}"
        raise DataError(f"{where}: x: value {value} {wrong} ({which}): {remedy}")


def check_labels(raw: Raw, count: int) -> Array:
    """Return the labels as int64 (N,). Raises DataError unless each image has one class number, from 0."""
    y = raw.y
    assert y is not None
    if y.shape != (count,):
        raise DataError(f"{raw.where}: y has shape {y.shape}: expected one label for each image, ({count},)")
    integral = y.dtype.kind in "buif" and bool(np.isfinite(y).all() and (y == np.floor(y)).all())
    if not integral or y.min() < 0 or y.max() >= MOST_CLASSES:
        raise DataError(
            f"{raw.where}: y does not contain class numbers 0, 1, 2, .. ({y.dtype}): number the classes from 0, or leave y out"
        )
    return y.astype(np.int64)


def learn(settings: DatasetSettings, raw: Raw, x_NCHW: Array, y_N: Array | None) -> DataSpec:
    """Return the spec of checked images."""
    _, c, h, w = x_NCHW.shape
    classes = 0 if y_N is None else len(raw.class_names) or int(y_N.max()) + 1
    return DataSpec(shape=(c, h, w), levels=settings.levels or raw.levels, classes=classes, class_names=raw.class_names)


def conform(raw: Raw, x_NCHW: Array, y_N: Array | None, found: DataSpec, known: DataSpec) -> tuple[dict[str, Array], list[str]]:
    """Return x and y in the form of the schema ``known``, and a description of each difference from ``found``."""
    if known.is_table:
        return {}, ["was a table, is now images"]
    differences = []
    for what, was, now in (
        ("channels", known.image[0], found.image[0]),
        ("size", "x".join(map(str, known.image[1:])), "x".join(map(str, found.image[1:]))),
        ("levels", known.levels, found.levels),
    ):
        if was != now:
            differences.append(f"{what}: was {was}, is now {now}")
    arrays = {"x": x_NCHW}
    if y_N is None or known.classes == 0:
        if (y_N is None) != (known.classes == 0):
            differences.append(
                "labels: were absent, are now present" if y_N is not None else "labels: were present, are now absent"
            )
    elif bool(raw.class_names) != bool(known.class_names):
        differences.append("labels: were names, are now numbers" if known.class_names else "labels: were numbers, are now names")
    elif new := [name for name in raw.class_names if name not in known.class_names]:
        differences.append(f"labels: {len(new)} new: {', '.join(map(repr, new[:3]))}{', ..' if len(new) > 3 else ''}")
    elif int(y_N.max()) >= known.classes and not known.class_names:
        differences.append(f"labels: were 0 .. {known.classes - 1}, are now up to {int(y_N.max())}")
    else:
        place = np.array([known.class_names.index(name) for name in raw.class_names] or range(known.classes), dtype=np.int64)
        arrays["y"] = place[y_N]
    return arrays, differences
