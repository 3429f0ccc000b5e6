"""Checks and conversions of images to the form of every later step: uint8 (N, C, H, W), values 0 .. levels-1, one size.

Shapes: N examples, B examples of one block, C channels, H height, W width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from remint.data.blocks import Blocks
from remint.data.folder import split_paths
from remint.data.values import WHOLE_BITS, Raw, Values, read_values
from remint.errors import DataError
from remint.records import DataSpec
from remint.runtime.events import emit
from remint.settings.dataset import DatasetSettings, ResizeSettings

MOST_CLASSES = 10_000  # a larger label is a mistake (an identifier, a time), not a class number
JUDGING = ("test", "val", "valid", "validation")  # names of a folder beside train, the first of which is held out
RANGE = "range"  # subject of an obvious decision, which need not be said
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA: an axis of this length counts as the channel axis

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Images:
    """Checked images: arrays, their spec, and each decision that is not obvious, by its subject; also the RANGE of values."""

    x_NCHW: Blocks
    y_N: Array | None
    spec: DataSpec
    decisions: Mapping[str, str]


def check(name: str, settings: DatasetSettings, raw: Raw, known: DataSpec | None) -> Images:
    """Check images and labels, and learn their spec. ``known``: the spec in the schema.

    Raises DataError, in one line, if they are no images of one form.
    """
    values = check_images(name, settings, raw, known)
    y_N, names, named = (None, (), "") if raw.y is None else check_labels(raw, len(values.x_NCHW), known)
    _, c, h, w = values.x_NCHW.shape
    spec = DataSpec(
        shape=(c, h, w),
        levels=values.levels,
        bits=(known.bits if known else None) if values.bits is None else None if values.bits == WHOLE_BITS else values.bits,
        classes=0 if y_N is None else len(names) or int(y_N.max()) + 1,
        class_names=names,
        filter=settings.resize.filter if settings.resize else "",
        converted=settings.channels is not None,
    )
    decisions = {"values": "; ".join(filter(None, (raw.decision, values.decision))), "labels": named}
    if not decisions["values"]:
        decisions[RANGE] = f"{values.found}, read as {values.levels} levels"
    return Images(values.x_NCHW, y_N, spec, {subject: decision for subject, decision in decisions.items() if decision})


def check_images(name: str, settings: DatasetSettings, raw: Raw, known: DataSpec | None = None) -> Values:
    """Return the images as uint8 (N, C, H, W), resized. Raises DataError, in one line, if they do not fit."""
    if raw.x.dtype.kind not in "buif":
        raise DataError(
            f"{raw.where}: x holds {raw.x.dtype}, not numbers: save it as integers 0 .. {(settings.levels or raw.levels) - 1}"
        )
    if raw.x.size == 0:
        raise DataError(f"{raw.where}: x is empty (shape {raw.x.shape}): add images to it")
    x_NCHW = _channels_first(name, settings, raw, known)
    if settings.channels not in (None, x_NCHW.shape[1]):
        raise DataError(
            f"{raw.where}: x has {x_NCHW.shape[1]} channels, but params.yaml: datasets.{name}.channels is "
            f"{settings.channels}: remove the setting, which only converts image files"
        )
    values = read_values(name, settings, raw, x_NCHW, known)
    x_NCHW = values.x_NCHW.map(lambda x_BCHW: np.ascontiguousarray(x_BCHW, dtype=np.uint8))
    resize = settings.resize
    if resize is not None:
        resize_images(np.zeros((1, *x_NCHW.shape[1:]), np.uint8), resize, values.levels)  # an error is raised here, not later
        x_NCHW = x_NCHW.map(lambda x_BCHW: resize_images(x_BCHW, resize, values.levels))
    return replace(values, x_NCHW=x_NCHW)


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


def _channels_first(name: str, settings: DatasetSettings, raw: Raw, known: DataSpec | None) -> Blocks:
    """Return (N, H, W), (N, C, H, W) or (N, H, W, C) as (N, C, H, W).

    With ``shape:`` in params.yaml the array must have that shape, channels first or last. Without it, the axis of length
    1, 3 or 4 is the channel axis. Raises DataError if both axes or neither have such a length.
    """
    x = raw.x
    if raw.channels_first and settings.shape in (None, list(x.shape[1:])):
        return x
    labels = None if raw.y is None else len(raw.y)
    if known is None and settings.shape is None and (remedy := _misplaced_axis(x.shape, labels)):
        raise DataError(f"{raw.where}: x has shape {raw.x.shape}, and {remedy}")
    if len(x.shape) == 3:
        x = x.map(lambda x_BHW: x_BHW[:, None])
    if len(x.shape) != 4:
        raise DataError(f"{raw.where}: x has shape {raw.x.shape}: expected (N, H, W), (N, C, H, W) or (N, H, W, C)")
    if settings.shape is not None:
        c, h, w = settings.shape
        if x.shape[1:] == (c, h, w):
            return x
        if x.shape[1:] == (h, w, c):
            return x.map(_to_channels_first)
        raise DataError(
            f"{raw.where}: x has images of shape {raw.x.shape[1:]}, but params.yaml: datasets.{name}.shape is "
            f"{settings.shape} (C, H, W): to resize the images, set resize: {{size: [{h}, {w}]}} in place of shape; "
            "else correct one of them"
        )
    if len(raw.x.shape) == 3:
        return x
    first, last = x.shape[1] in CHANNELS, x.shape[3] in CHANNELS
    if first == last:
        raise DataError(
            f"{raw.where}: x has shape {raw.x.shape}, and its channel axis is ambiguous: "
            f"set datasets.{name}.shape in params.yaml to [C, H, W]"
        )
    return x if first else x.map(_to_channels_first)


def _misplaced_axis(shape: tuple[int, ...], labels: int | None) -> str:
    """Return what to do with an array whose images do not lie along its first axis, as in files of MATLAB; "" for others."""
    last = "its images lie along the last axis: save np.moveaxis(x, -1, 0)"
    if labels is not None and labels == shape[-1] != shape[0]:
        return last
    if len(shape) == 3 and shape[0] == shape[1] != shape[2]:
        turned = f"may hold {shape[2]} images of {shape[0]} x {shape[1]}: save np.moveaxis(x, -1, 0)"
        return f"{turned}; else set shape: {[1, *shape[1:]]}"
    if len(shape) == 4 and not {shape[1], shape[3]} & set(CHANNELS):
        if shape[2] in CHANNELS:
            return last
        if shape[0] in CHANNELS:
            return "its channels lie along the first axis: save np.moveaxis(x, 0, 1)"
    return ""


def _to_channels_first(x_BHWC: Array) -> Array:
    return x_BHWC.transpose(0, 3, 1, 2)


def check_labels(raw: Raw, count: int, known: DataSpec | None) -> tuple[Array, tuple[str, ...], str]:
    """Return the labels as int64 (N,), the names of their classes, and the decision about them if it is not obvious.

    Numbers 0 .. K-1 have no names. Others, such as 1 .. 10, are the names of the classes, so that no class is without examples.
    The schema ``known`` decides for later data. Raises DataError unless each image has one class number.
    """
    y = raw.y
    assert y is not None
    if y.shape != (count,):
        raise DataError(
            f"{raw.where}: y has shape {y.shape}: expected one label for each image, ({count},): y.argmax(axis=1) or y.ravel()"
        )
    integral = y.dtype.kind in "buif" and bool(np.isfinite(y).all() and (y == np.floor(y)).all())
    if not integral or y.min() < 0 or y.max() >= MOST_CLASSES:
        raise DataError(
            f"{raw.where}: y does not contain class numbers 0, 1, 2, .. ({y.dtype}): number the classes from 0, or leave y out"
        )
    y_N = y.astype(np.int64)
    if raw.class_names:
        return y_N, raw.class_names, ""
    number_K, place_N = np.unique(y_N, return_inverse=True)
    named = len(number_K) <= number_K[-1]
    if known is not None:
        named = bool(known.class_names) and all(name.isdigit() for name in known.class_names)
    if not named:
        return y_N, (), ""
    decision = f"the {len(number_K)} numbers that occur, from {number_K[0]} to {number_K[-1]}, are the names of the classes"
    return place_N.astype(np.int64), tuple(map(str, number_K.tolist())), decision


def conform(found: Images, known: DataSpec) -> tuple[dict[str, Any], list[str]]:
    """Return x and y in the form of the schema ``known``, and a description of each difference from it."""
    if known.is_table:
        return {}, ["was a table, is now images"]
    spec, y_N, differences = found.spec, found.y_N, []
    for what, was, now in (
        ("channels", known.image[0], spec.image[0]),
        ("size", "x".join(map(str, known.image[1:])), "x".join(map(str, spec.image[1:]))),
        ("levels", known.levels, spec.levels),
        ("bits of a value", known.bits or WHOLE_BITS, spec.bits or WHOLE_BITS),
    ):
        if was != now:
            differences.append(f"{what}: was {was}, is now {now}")
    arrays: dict[str, Any] = {"x": found.x_NCHW}
    if y_N is None or known.classes == 0:
        if (y_N is None) != (known.classes == 0):
            differences.append(
                "labels: were absent, are now present" if y_N is not None else "labels: were present, are now absent"
            )
    elif bool(spec.class_names) != bool(known.class_names):
        differences.append("labels: were names, are now numbers" if known.class_names else "labels: were numbers, are now names")
    elif new := [name for name in spec.class_names if name not in known.class_names]:
        differences.append(f"labels: {len(new)} new: {', '.join(map(repr, new[:3]))}{', ..' if len(new) > 3 else ''}")
    elif int(y_N.max()) >= known.classes and not known.class_names:
        differences.append(f"labels: were 0 .. {known.classes - 1}, are now up to {int(y_N.max())}")
    else:
        place = np.array([known.class_names.index(name) for name in spec.class_names] or range(known.classes), dtype=np.int64)
        arrays["y"] = place[y_N]
    return arrays, differences


def folder_labels(where: str, names: list[str], apart: str | None = None) -> list[str] | None:
    """Return the folder of each file, or None without folders. Raises DataError for mixed depths or deeper folders.

    ``apart``: the folder of the held-out files, and no label. If the others are as deep as these, their first folders are no
    labels either: train/cat/1.png and test/cat/2.png are both of cat.
    """
    last: dict[str, str] = {}  # folder -> its last file: the folders alone decide, and are few
    for name in names:
        parent = name.rpartition("/")[0]
        last.pop(parent, None)
        last[parent] = name
    parts = split_paths(list(last.values()))
    inside = [part for part in parts if part[0] == apart and len(part) > 1]
    if inside:
        alike = len({len(part) for part in parts}) == 1
        parts = split_paths(["/".join(part[1:] if alike or part[0] == apart else part) for part in parts])
    depths = {len(part): name for part, name in zip(parts, last.values(), strict=True)}
    if set(depths) == {1}:
        return None
    tops = sorted({part[0] for part in parts if len(part) > 1})
    judging = [top for name in JUDGING for top in tops if top.lower() == name]
    if not inside and judging and {top.lower() for top in tops} <= {"train", *JUDGING} and len(tops) > len(judging):
        if set(depths) == {3}:
            raise DataError(
                f"{where} has the folders {', '.join(tops)}, each with the labels: set split: {{held_out: {judging[0]}}}"
            )
        emit("test_folder", folders=", ".join(tops), part=judging[0])
    if set(depths) != {2}:
        raise DataError(
            f"{where}: {depths[max(depths)]} is {max(depths) - 1} folders deep and {depths[min(depths)]} {min(depths) - 1}: "
            f"put all images into one folder, or make a folder for each label with its images directly in it"
        )
    label_of = {parent: part[0] for parent, part in zip(last, parts, strict=True)}
    for label in label_of.values():
        if not label.isprintable():  # includes bytes that are not UTF-8
            raise DataError(f"{where}: the folder {label!r} has a name that cannot be printed: rename it")
    return [label_of[name.rpartition("/")[0]] for name in names]


def check_same_shape(where: str, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise DataError if images differ in channels or size: a person must choose to convert or resample."""
    for axis, what, remedy in (
        (slice(0, 1), "channels", "set channels: 1 or 3"),
        (slice(1, 3), "size", "set resize: {size: [H, W]}"),
    ):
        counts = Counter(shape[axis] for shape in shapes)
        if len(counts) > 1:
            (usual, most), *_ = counts.most_common()
            odd, other = next((name, shape) for name, shape in zip(names, shapes, strict=True) if shape[axis] != usual)
            text = "x".join(map(str, usual)), "x".join(map(str, other[axis]))
            raise DataError(
                f"{where}: the images differ in {what}: {most} of {len(shapes)} have {text[0]}, {odd} has {text[1]}: {remedy}"
            )
