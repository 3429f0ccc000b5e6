"""Reader of PNG, JPEG, WebP, TIFF and BMP files: images of one size.

The folder of a file is its label. Without folders there are no labels, and a single folder around all files is ignored. A
file that cannot be decoded, is too large, or has another image format is set aside, counted and named. The content decides which
format it is. Files that lie beside images (BESIDE_IMAGES) are ignored.

Decoding rotates the image by its EXIF orientation, takes the first frame of an animation, puts transparent parts on white,
divides values in 16 bits by one number for all files (values.py, setting ``bits``), converts to grey or RGB (setting
``channels``), and crops and resamples or pads (``resize``).

Decoded images go into a spool on disk. Of each file only its name and shape stay in memory.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from remint.data.blocks import Spool, check_example, stored
from remint.data.decoding import KNOWN, Facts, Undecodable, decode_image
from remint.data.folder import File
from remint.data.formats import HEAD, identify
from remint.data.images import check_same_shape, folder_labels
from remint.data.values import IMAGE_LEVELS, WHOLE_BITS, Raw, describe_bits, used_bits
from remint.errors import DataError
from remint.records import DataSpec
from remint.runtime.events import emit
from remint.settings.dataset import DatasetSettings

UNSUPPORTED = (".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".ppm", ".pgm", ".tga", ".ico", ".psd", ".svg")
BESIDE_IMAGES = re.compile(  # files that lie beside images, by their name; every other file counts as an image
    r".*\.(txt|md|rst|csv|tsv|jsonl?|xml|ya?ml|toml|html?|pdf|log|ini|db|py|ipynb|sh|md5|sha256|dvc|parquet|xlsx)"
    r"|readme|licen[cs]e|copying|notice|authors|citation|changelog|makefile|(md5|sha256)sums",
    re.IGNORECASE,
)
MOST_FILE_BYTES = 64 << 20
PROGRESS_EVERY = 256  # files between two reports of progress
NAMED = 3  # files in an error message
EARLY_REFUSAL = 1_000  # unusable files after which reading stops, if their share of all files is too large


@dataclass
class Found:
    """Files of a source, as they were read."""

    facts: Facts
    file: BinaryIO  # the decoded images, one after the other
    only: tuple[int, ...] | None = None  # shape of the images that are not set aside; None: any
    names: list[str] = field(default_factory=list)  # of the decoded images, in the same order
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # C, H, W of each; equal ones are one object
    misnamed: dict[str, str] = field(default_factory=dict)  # file -> format of its content
    unusable: dict[str, str] = field(default_factory=dict)  # file -> reason
    ignored: list[str] = field(default_factory=list)
    brightest: str = ""  # the first file with the highest value in 16 bits


def read(
    where: str,
    files: Iterable[File],
    settings: DatasetSettings,
    spool: Spool,
    known: DataSpec | None = None,
    only: tuple[int, ...] | None = None,
) -> Raw:
    """Read the images of ``files``, in the order of their names. ``spool`` holds them, ``known`` is the spec in the schema.

    ``only``: set images of another shape (C, H, W) aside, in place of an error.

    Where the first import finds that 16-bit files use fewer bits, ``files`` is iterated once more: the range of all decides.

    Raises DataError if there are none, if they differ in size or channels, if their folders do not form labels, or if a larger
    share than ``settings.undecodable`` was set aside.
    """
    colour = known is not None and known.image[0] == 3
    facts = Facts(settings.bits or (known and known.bits) or WHOLE_BITS, colour)
    found = _read_all(where, files, settings, Found(facts, spool.file(), only))
    used = used_bits(found.facts.highest) if found.facts.highest >= 0 else WHOLE_BITS
    if known is None and settings.bits is None and used < WHOLE_BITS:
        found.file.truncate(0)
        found = _read_all(where, files, settings, Found(Facts(used, colour), spool.file(), only))
    names = sorted(found.names)
    order_N = None
    if names != found.names:  # an archive has any order
        order_N = np.array(sorted(range(len(names)), key=found.names.__getitem__))
    _check_set_aside(where, len(names), dict(sorted(found.unusable.items())), settings.undecodable)
    if not names:
        raise DataError(f"{where} contains no {KNOWN} files ({len(found.ignored)} other files)")
    bits, decision = _decide_bits(where, found, settings, known)
    if found.ignored:
        emit("ignored", files=len(found.ignored), first=min(found.ignored))
    if found.misnamed:
        first = min(found.misnamed)
        emit("misnamed", files=len(found.misnamed), first=first, format=found.misnamed[first])
    check_same_shape(where, names, found.shapes if order_N is None else [found.shapes[place] for place in order_N])
    label_N = folder_labels(where, names, settings.split.part)
    classes = tuple(sorted(set(label_N or ())))
    place = {name: index for index, name in enumerate(classes)}
    return Raw(
        where=where,
        x=stored(found.file, (len(names), *found.shapes[0]), np.dtype(np.uint8), order_N=order_N),
        y=np.array([place[label] for label in label_N], dtype=np.int64) if label_N else None,
        levels=IMAGE_LEVELS,
        channels_first=True,
        class_names=classes,
        bits=bits,
        one_bit=found.facts.modes == {"1"},
        decision=decision,
        set_aside=dict(sorted(found.unusable.items())),
        names=tuple(names),
    )


def _read_all(where: str, files: Iterable[File], settings: DatasetSettings, found: Found) -> Found:
    """Decode each file into the spool, and take note of its facts. Images of other shapes are only counted: they are an error."""
    unusable, facts = found.unusable, found.facts
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}  # one object for each shape
    for count, file in enumerate(files):
        path = PurePosixPath(file.name)
        suffix = path.suffix.lower()
        if BESIDE_IMAGES.fullmatch(path.name):
            found.ignored.append(file.name)
        elif suffix in UNSUPPORTED:
            unusable[file.name] = f"is not {KNOWN}"
        elif file.size > MOST_FILE_BYTES:
            unusable[file.name] = f"has {file.size:,} bytes, more than {MOST_FILE_BYTES:,}"
        else:
            try:
                content = file.read()
                before = facts.highest
                x_CHW = _decode(content, settings, found)
                if not shapes:  # here, and not after hours of decoding
                    check_example(x_CHW.shape, x_CHW.nbytes)
                found.names.append(file.name)
                found.shapes.append(shapes.setdefault(x_CHW.shape, x_CHW.shape))
                if len(shapes) == 1:
                    found.file.write(x_CHW.tobytes())
                found.brightest = file.name if facts.highest > before else found.brightest
                shown = identify(content[:HEAD])
                if shown and suffix not in shown.suffixes:
                    found.misnamed[file.name] = shown.name
            except Undecodable as error:
                unusable[file.name] = str(error)
            except DataError as error:
                raise DataError(f"{where}: {file.name}: {error}") from error
        done, total = file.place
        if len(unusable) > max(EARLY_REFUSAL, settings.undecodable * total):
            _check_set_aside(where, total - len(unusable), unusable, settings.undecodable, "at least ")
        if count % PROGRESS_EVERY == PROGRESS_EVERY - 1:
            emit("progress", step=done, steps=total)
    return found


def _decode(content: bytes, settings: DatasetSettings, found: Found) -> np.ndarray[Any, Any]:
    x_CHW = decode_image(content, settings, found.facts)
    if found.only not in (None, x_CHW.shape):
        raise Undecodable(f"has the shape {x_CHW.shape}, not {found.only}")
    return x_CHW


def _decide_bits(where: str, found: Found, settings: DatasetSettings, known: DataSpec | None) -> tuple[int | None, str]:
    """Return the bits of the values in 16-bit files, and the decision about them. None: there are no such files."""
    facts = found.facts
    if facts.highest < 0:
        return None, ""
    used = used_bits(facts.highest)
    if facts.highest >= 1 << facts.bits:
        if settings.bits:
            raise DataError(
                f"{where}: a 16-bit file holds {facts.highest}, which has more bits than bits: {facts.bits}: "
                f"correct it, or clip the values of {found.brightest} to {(1 << facts.bits) - 1}"
            )
        return used, ""  # which does not fit the schema
    if known and not settings.bits and facts.bits == WHOLE_BITS > used:
        emit("dark", highest=facts.highest, bits=used)
    return facts.bits, describe_bits(facts.lowest, facts.highest, facts.bits)


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
