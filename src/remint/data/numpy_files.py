"""NumPy's .npy files (images) and .npz files (images and labels). Pickles are refused. Images are read in blocks."""

from __future__ import annotations

import errno
import shutil
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from remint.data.archive import BLOCK, check_limits, count_zip_entries
from remint.data.blocks import Blocks, Spool, stored
from remint.data.values import IMAGE_LEVELS, Raw
from remint.errors import DataError

# Errors of numpy for damaged or false content and for refused pickles (ValueError).
UNREADABLE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    SyntaxError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

Array = np.ndarray[Any, Any]


def read_npy(path: Path, spool: Spool) -> Raw:
    """Read one array of images."""
    with _damage_as_data_error(path, "a NumPy .npy file"):
        x = _blocks(path, path)
    if x is None:
        raise DataError(f"{path} holds several arrays: rename it to {path.stem}.npz")
    return Raw(where=str(path), x=x, y=None, levels=IMAGE_LEVELS)


def read_npz(path: Path, spool: Spool) -> Raw:
    """Read the arrays x (images) and y (labels, optional). The images are unpacked into the spool."""
    with _damage_as_data_error(path, "a NumPy .npz file"):
        _check_size(path)
        with np.load(path, allow_pickle=False) as archive:
            found = archive.files
            y = archive["y"] if "y" in found else None
    if "x" not in found:
        named = ", ".join(found) or "nothing"
        raise DataError(f"{path} has no array 'x' (it holds {named[:200]}): save the images as x and the labels, if any, as y")
    with _damage_as_data_error(path, "a NumPy .npz file"):
        x = _unpack(path, spool)
    if x is None or not (y is None or isinstance(y, np.ndarray)):  # numpy returns bytes for a member that is not an array
        raise DataError(f"{path}: {'x' if x is None else 'y'} is not an array: save it again with np.savez")
    return Raw(where=str(path), x=x, y=y, levels=IMAGE_LEVELS)


def _unpack(path: Path, spool: Spool) -> Blocks | None:
    """Return the images of a .npz file; None if they are no array."""
    with zipfile.ZipFile(path) as archive:
        member = "x.npy" if "x.npy" in archive.namelist() else "x"  # as numpy finds it
        with archive.open(member) as stream:
            if stream.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                return None
        with archive.open(member) as stream, tempfile.NamedTemporaryFile(dir=spool.folder) as named:
            shutil.copyfileobj(stream, named, BLOCK)
            named.flush()
            kept = spool.keep(Path(named.name))  # its name goes, its content stays
            return _blocks(Path(named.name), kept)


def _blocks(path: Path, file: Path | BinaryIO) -> Blocks | None:
    """Return the array of a .npy file; None if it holds several. ``file``: path, or the open file of the same content."""
    x = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(x, np.memmap):
        return None
    if x.flags.c_contiguous and x.ndim and x.size:
        return stored(file, x.shape, x.dtype, x.offset)
    return Blocks.of(x)  # in the order of Fortran an example's numbers are not side by side, so the file is mapped


def _check_size(path: Path) -> None:
    check_limits(path, count_zip_entries(path), 0, None)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    check_limits(path, len(members), sum(member.file_size for member in members), path.stat().st_size)


@contextmanager
def _damage_as_data_error(path: Path, what: str) -> Iterator[None]:
    """Turn every error about damaged content into a DataError that names the file."""
    try:
        yield
    except (*UNREADABLE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: an offset before the start
            raise
        raise DataError(_unreadable(path, what, error)) from error


def _unreadable(path: Path, what: str, error: Exception) -> str:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return f"{path} is not {what} of numbers (object arrays and pickles are refused): save it again with np.save or np.savez"
    return f"{path} is not {what}, or is damaged ({type(error).__name__}): save it again with np.save or np.savez"
