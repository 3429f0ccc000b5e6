"""IDX files, the format of MNIST (LeCun et al., 1998) and Fashion-MNIST (Xiao et al., 2017), plain or gzipped.

    FOLDER/train-images-idx3-ubyte.gz    00 00 08 03, then N, H, W as big-endian 32-bit numbers, then N H W bytes
    FOLDER/train-labels-idx1-ubyte.gz    00 00 08 01, then N, then N bytes
    FOLDER/t10k-..                       the same; all files are pooled, since splits.py makes the split. The part
                                         of an image is its folder in Raw.names: t10k/17

Shapes: N images, H height, W width.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from remint.data.archive import BLOCK, check_limits
from remint.data.blocks import Blocks, Spool, concatenate, stored
from remint.data.folder import check_regular, visible_entries
from remint.data.values import IMAGE_LEVELS, Raw
from remint.errors import DataError
from remint.runtime.events import emit

NAME = re.compile(r"(?P<part>.*?)(?P<what>images|labels)[-.]idx(?P<axes>[13])-ubyte(?P<packed>\.gz)?", re.IGNORECASE)

GZIP = b"\x1f\x8b"

Array = np.ndarray[Any, Any]


def has_idx_files(folder: Path) -> bool:
    return any(NAME.fullmatch(path.name) for path in visible_entries(folder))


def read(folder: Path, spool: Spool) -> Raw:
    """Read the images of all IDX files in ``folder``, in the order of their names, and the labels if present.

    Raises DataError, which names the file, if one is damaged, missing or present twice.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: put it there or correct the path")
    found: dict[tuple[str, str], Path] = {}
    for path in visible_entries(folder):
        if match := NAME.fullmatch(path.name):
            check_regular(path, folder)
            before = found.setdefault((match["what"].lower(), match["part"]), path)
            if before != path:
                raise DataError(f"{before} and {path.name} contain the same part: remove one of them")
    parts = sorted(part for what, part in found if what == "images")
    if not parts:
        raise DataError(
            f"{folder} contains no IDX images: add files such as train-images-idx3-ubyte or train-images-idx3-ubyte.gz"
        )
    images = [_array(found["images", part], 3, spool) for part in parts]
    if len({x_NHW.shape[1:] for x_NHW in images}) > 1:
        sizes = ", ".join(f"{found['images', part].name} {x.shape[1:]}" for part, x in zip(parts, images, strict=True))
        raise DataError(f"{folder}: the images differ in size: {sizes}")
    y_N = None
    if any(what == "labels" for what, _ in found):
        y_N = np.concatenate([_labels(folder, found, part, len(x), spool) for part, x in zip(parts, images, strict=True)])
    names = [f"{part.rstrip('-_.')}/{index}" for part, x in zip(parts, images, strict=True) for index in range(len(x))]
    return Raw(where=str(folder), x=concatenate(images), y=y_N, levels=IMAGE_LEVELS, names=tuple(names))


def _labels(folder: Path, found: dict[tuple[str, str], Path], part: str, count: int, spool: Spool) -> Array:
    if ("labels", part) not in found:
        raise DataError(
            f"{folder}: {found['images', part].name} has no labels, but other parts have: add its labels, or remove all labels"
        )
    path = found["labels", part]
    labels = _array(path, 1, spool)
    y_N = np.concatenate([*labels, np.empty(0, np.uint8)])
    if len(y_N) != count:
        raise DataError(f"{path} has {len(y_N)} labels for {count} images: one of the two files is incomplete")
    return y_N


def _array(path: Path, axes: int, spool: Spool) -> Blocks:
    """Return the array of one file, gzipped or not, as its content says. Its length must be exactly the one in the header.

    The content of a gzipped file is unpacked into the spool.
    """
    try:
        with path.open("rb") as stream:
            packed = stream.read(len(GZIP)) == GZIP
        if packed != (path.suffix.lower() == ".gz"):
            emit("misnamed", files=1, first=path.name, format="a gzipped file" if packed else "a plain IDX file")
        with gzip.open(path) if packed else path.open("rb") as stream:
            zero, kind, found, *shape = struct.unpack(f">HBB{axes}I", stream.read(4 * (1 + axes)))
            if (zero, kind, found) != (0, 8, axes):
                raise DataError(f"{path} is not an IDX file of bytes with {axes} axes: its header has other values")
            size = math.prod(shape)
            check_limits(path, 1, size, path.stat().st_size)
            offset = stream.tell()
            file, length = _unpack(stream, size, spool) if packed else (path, path.stat().st_size - offset)
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
        raise DataError(f"{path} is not an IDX file, or is damaged ({type(error).__name__}): fetch it again") from error
    if length != size:
        raise DataError(
            f"{path} holds {'more' if length > size else 'fewer'} than the {size:,} bytes given in its header: fetch it again"
        )
    return stored(file, tuple(shape), np.dtype(np.uint8), 0 if packed else offset)


def _unpack(stream: gzip.GzipFile | BinaryIO, size: int, spool: Spool) -> tuple[BinaryIO, int]:
    """Return a file with the next ``size`` bytes, and their number: fewer if the stream ends early, more if it goes on."""
    file, length = spool.file(), 0
    while length <= size and (content := stream.read(min(BLOCK, size + 1 - length))):
        file.write(content)
        length += len(content)
    return file, length
