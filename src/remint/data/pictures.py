"""Reader of PNG, JPEG and WebP files: images of one size.

The folder of a file is its label. Without folders there are no labels, and a single folder around all files is ignored. A
file that cannot be decoded, is too large, or has another image format is set aside, counted and named.

Decoding rotates the image by its EXIF orientation, takes the first frame of an animation, puts transparent parts on white,
divides 16-bit grey by 256, converts to grey or RGB (setting ``channels``), and crops and resamples or pads (``resize``).

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from remint.data.container import HostileImage, strip_metadata
from remint.data.folder import File, split_paths
from remint.data.images import IMAGE_LEVELS, Raw, resize_image
from remint.errors import DataError
from remint.runtime.events import emit
from remint.settings.recipe import DatasetSettings

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
UNSUPPORTED = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".ppm", ".pgm", ".tga", ".ico", ".psd")
JUDGING = ("test", "val", "valid", "validation")  # names of a folder beside train, the first of which is held out
GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow's modes without colour

MOST_PIXELS = 1 << 26  # of one file: 67 million, 200 MB as RGB. A larger one is a bomb or no training image
MOST_RATIO = 1_000  # pixels for each byte of the file, after FREE_PIXELS: above every JPEG, near the limit of deflate
FREE_PIXELS = 1 << 22
MOST_FILE_BYTES = 64 << 20
PROGRESS_EVERY = 256  # files between two reports of progress
NAMED = 3  # files in an error message
EARLY_REFUSAL = 1_000  # unusable files after which reading stops, if their share of all files is too large

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


def read(where: str, files: Iterable[File], settings: DatasetSettings) -> Raw:
    """Read the images of ``files``, in the order of their names.

    Raises DataError if there are none, if they differ in size or channels, if their folders do not form labels, or if a
    larger share than ``settings.undecodable`` was set aside.
    """
    images: dict[str, Array] = {}
    unusable: dict[str, str] = {}
    ignored = []
    for count, file in enumerate(files):
        suffix = file.name[file.name.rfind(".") :].lower()
        if suffix in UNSUPPORTED:
            unusable[file.name] = "is not PNG, JPEG or WebP"
        elif suffix not in FORMATS:
            ignored.append(file.name)
        elif file.size > MOST_FILE_BYTES:
            unusable[file.name] = f"has {file.size:,} bytes, more than {MOST_FILE_BYTES:,}"
        else:
            try:
                images[file.name] = decode_image(file.read(), settings)
            except Undecodable as error:
                unusable[file.name] = str(error)
            except DataError as error:
                raise DataError(f"{where}: {file.name}: {error}") from error
        done, total = file.place
        if len(unusable) > max(EARLY_REFUSAL, settings.undecodable * total):
            _check_set_aside(where, total - len(unusable), unusable, settings.undecodable, "at least ")
        if count % PROGRESS_EVERY == PROGRESS_EVERY - 1:
            emit("progress", step=done, steps=total)
    _check_set_aside(where, len(images), dict(sorted(unusable.items())), settings.undecodable)
    if not images:
        raise DataError(f"{where} contains no PNG, JPEG or WebP files ({len(ignored)} other files)")
    if ignored:
        emit("ignored", files=len(ignored), first=min(ignored))
    names = sorted(images)
    _check_same_shape(where, {name: images[name].shape for name in names})
    label_N = labels(where, names, settings.split.part)
    classes = tuple(sorted(set(label_N or ())))
    place = {name: index for index, name in enumerate(classes)}
    return Raw(
        where=where,
        x=np.stack([images.pop(name) for name in names]),
        y=np.array([place[label] for label in label_N], dtype=np.int64) if label_N else None,
        levels=IMAGE_LEVELS,
        channels_first=True,
        class_names=classes,
        set_aside=dict(sorted(unusable.items())),
        names=tuple(names),
    )


class Undecodable(Exception):
    """Reason why a file is set aside."""


def decode_image(content: bytes, settings: DatasetSettings) -> Array:
    """Decode one file to uint8 (C, H, W). Raises Undecodable with the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damage, and about sizes that are checked below
            essential, orientation = strip_metadata(content)
            image: Image.Image = Image.open(io.BytesIO(essential), formats=sorted(set(FORMATS.values())))
            _check_pixels(image.width, image.height, len(content))
            image.load()
            image = image if orientation == 1 else image.transpose(TRANSPOSES[orientation])
            image = _to_8_bit(image, settings.channels)
    except HostileImage as error:
        raise Undecodable(str(error)) from error
    except UNDECODABLE as error:
        reason = "is not an image" if isinstance(error, UnidentifiedImageError) else "is damaged or cut off"
        raise Undecodable(reason if not isinstance(error, Image.DecompressionBombError) else str(error)) from error
    if settings.resize is not None:
        image = resize_image(image, settings.resize)
    x_HWC = np.asarray(image)
    return np.ascontiguousarray(np.atleast_3d(x_HWC).transpose(2, 0, 1))


def _check_pixels(width: int, height: int, size: int) -> None:
    """Raise Undecodable if an image claims more pixels than the limit, or than ``size`` bytes can hold."""
    if width * height > MOST_PIXELS:
        raise Undecodable(f"claims {width} x {height} pixels, more than {MOST_PIXELS:,}")
    if width * height > MOST_RATIO * size + FREE_PIXELS:
        raise Undecodable(f"claims {width} x {height} pixels in {size:,} bytes: it is damaged or a decompression bomb")


def _to_8_bit(image: Image.Image, channels: int | None) -> Image.Image:
    """Return the image as 8-bit grey or RGB: by ``channels``, else by its content (a palette of greys is grey)."""
    grey = image.mode in GREY
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        background.alpha_composite(image.convert("RGBA"))
        image = background
    rgb = image.convert("RGB")
    if image.mode == "P":
        red, green, blue = (np.asarray(band) for band in rgb.split())
        grey = bool((red == green).all() and (green == blue).all())
    return rgb.convert("L") if (channels or (1 if grey else 3)) == 1 else rgb


def _check_set_aside(where: str, usable: int, unusable: dict[str, str], share: float, so_far: str = "") -> None:
    if not unusable:
        return
    named = "; ".join(f"{name} {why}" for name, why in list(unusable.items())[:NAMED]) + ("; .." if len(unusable) > NAMED else "")
    total = usable + len(unusable)
    if len(unusable) > share * total:
        raise DataError(
            f"{where}: {so_far}{len(unusable)} of {total} images cannot be used, more than "
            f"{100 * share:g}% (setting undecodable): {named}: repair or remove them"
        )
    emit("set_aside", files=len(unusable), of=total, named=named)


def _check_same_shape(where: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise DataError if images differ in channels or size: a person must choose to convert or resample."""
    for axis, what, remedy in (
        (slice(0, 1), "channels", "set channels: 1 or 3"),
        (slice(1, 3), "size", "set resize: {size: [H, W]}"),
    ):
        counts = Counter(shape[axis] for shape in shapes.values())
        if len(counts) > 1:
            (usual, most), *_ = counts.most_common()
            odd = next(name for name, shape in shapes.items() if shape[axis] != usual)
            text = "x".join(map(str, usual)), "x".join(map(str, shapes[odd][axis]))
            raise DataError(
                f"{where}: the images differ in {what}: {most} of {len(shapes)} have {text[0]}, {odd} has {text[1]}: {remedy}"
            )


def labels(where: str, names: list[str], apart: str | None = None) -> list[str] | None:
    """Return the folder of each file, or None without folders. Raises DataError for mixed depths or deeper folders.

    ``apart``: the folder of the held-out files, and no label. If the others are as deep as these, their first folders are no
    labels either: train/cat/1.png and test/cat/2.png are both of cat.
    """
    parts = split_paths(names)
    inside = [part for part in parts if part[0] == apart and len(part) > 1]
    if inside:
        alike = len({len(part) for part in parts}) == 1
        parts = split_paths(["/".join(part[1:] if alike or part[0] == apart else part) for part in parts])
    depths = {len(part): name for part, name in zip(parts, names, strict=True)}
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
    label_N = [part[0] for part in parts]
    for label in label_N:
        if not label.isprintable():  # includes bytes that are not UTF-8
            raise DataError(f"{where}: the folder {label!r} has a name that cannot be printed: rename it")
    return label_N
