"""NumPy's .npy files (images) and .npz files (images and labels). Pickles are refused."""

from __future__ import annotations

import errno
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from remint.data.archive import check_limits, count_zip_entries
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


def read_npy(path: Path) -> Raw:
    """Read one array of images."""
    with _damage_as_data_error(path, "a NumPy .npy file"):
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(x, np.ndarray):
        raise DataError(f"{path} holds several arrays: rename it to {path.stem}.npz")
    return Raw(where=str(path), x=x, y=None, levels=IMAGE_LEVELS)


def read_npz(path: Path) -> Raw:
    """Read the arrays x (images) and y (labels, optional)."""
    with _damage_as_data_error(path, "a NumPy .npz file"):
        _check_size(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays: Mapping[str, Array] = {key: archive[key] for key in ("x", "y") if key in archive.files}
            found = ", ".join(archive.files) or "nothing"
    if "x" not in arrays:
        raise DataError(f"{path} has no array 'x' (it holds {found[:200]}): save the images as x and the labels, if any, as y")
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy returns bytes for a member that is not an array
            raise DataError(f"{path}: {key} is not an array: save it again with np.savez")
    return Raw(where=str(path), x=arrays["x"], y=arrays.get("y"), levels=IMAGE_LEVELS)


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
