"""Where a dataset comes from: a source is read, checked and written down as one snapshot.

    snapshot(name, settings, root, out) -> out/data.npz
        x       uint8 (N, C, H, W), values 0 .. levels-1
        y       int64 (N,), class numbers from 0; absent where the source has no labels
        levels  int64 ()

The same source gives the same bytes, so that DVC sees a change of the data and of nothing else.

Shapes: N examples, C channels, H height, W width.
"""

from __future__ import annotations

import difflib
import gzip
import importlib.metadata
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from remint.errors import DataError, SettingsError
from remint.recipe import DatasetSettings

SNAPSHOT = "data.npz"
REMOTE = "s3://"  # what lies there is fetched beforehand, by storage.py
IMAGE_LEVELS = 256  # of a file source that says nothing: 8-bit images
MOST_CLASSES = 10_000  # a label above is a mistake (an identifier, a time), not a class number
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA: an axis of this length is taken for the channels

# What numpy raises for bytes that are not the file they claim to be, refused pickles (ValueError) included.
UNREADABLE = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Raw:
    """A source as it was read: unchecked arrays, and the name that errors give them."""

    where: str
    x: Array
    y: Array | None
    levels: int


def snapshot(name: str, settings: DatasetSettings, root: Path, out: Path, *, fetched: Path | None = None) -> None:
    """Reads the source of dataset ``name`` (a relative file below ``root``) and writes ``out/data.npz``.

    ``fetched``: the folder that holds what lies at an s3:// source.

    Raises SettingsError for a source that is not known, DataError for one that is missing, empty, broken
    or not of the shape and levels that params.yaml asks for.
    """
    try:
        raw = read(name, settings, root, fetched)
        levels = settings.levels or raw.levels
        x_NCHW = check_images(name, settings, raw, levels)
        arrays: dict[str, Any] = {"x": x_NCHW, "levels": np.int64(levels)}
        if raw.y is not None:
            arrays["y"] = check_labels(raw, len(x_NCHW))
    except DataError as error:  # a reader knows its file; the key it was named by is known here
        if "params.yaml:" in str(error):
            raise
        raise DataError(f"params.yaml: datasets.{name}.source: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / SNAPSHOT, allow_pickle=False, **arrays)


def read(name: str, settings: DatasetSettings, root: Path, fetched: Path | None = None) -> Raw:
    """The arrays of a source, unchecked. Raises SettingsError where no reader knows the source."""
    source = settings.source
    if source.startswith(REMOTE):
        return _only_file(_held(source, fetched))
    if source in BUILT_IN:
        return BUILT_IN[source]()
    reader = FILES.get(Path(source).suffix)
    if reader is None:
        near = difflib.get_close_matches(source, BUILT_IN, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(BUILT_IN)}, file.npy and file.npz"
        raise SettingsError(f"params.yaml: datasets.{name}.source: unknown source '{source}': {hint}")
    path = root / source
    if not path.is_file():
        raise DataError(f"params.yaml: datasets.{name}.source: there is no file {path}: put it there or correct the path")
    return reader(path)


def _held(source: str, fetched: Path | None) -> Path:
    """The folder that a remote source was fetched into."""
    if fetched is None or not fetched.is_dir():
        raise DataError(f"{source} has not been fetched: `remint run` fetches it, dvc by itself does not")
    return fetched


def _only_file(folder: Path) -> Raw:
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    if len(files) == 1 and files[0].suffix in FILES:
        return FILES[files[0].suffix](files[0])
    raise DataError(f"{folder} holds {len(files)} files: expected one file.npy or file.npz")


def _digits() -> Raw:
    """The 1,797 handwritten digits of scikit-learn (8 x 8, 17 levels; Alpaydin & Kaynak, UCI, 1998).

    The file that sklearn.datasets.load_digits reads, without the two seconds of importing it.
    """
    path = Path(str(importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")))
    with gzip.open(path, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",")
    return Raw(where="sklearn:digits", x=table[:, :-1].reshape(-1, 1, 8, 8), y=table[:, -1], levels=17)


def _npy(path: Path) -> Raw:
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise DataError(_unreadable(path, "a NumPy .npy file", error)) from error
    if not isinstance(x, np.ndarray):
        raise DataError(f"{path} holds several arrays: rename it to {path.stem}.npz")
    return Raw(where=str(path), x=x, y=None, levels=IMAGE_LEVELS)


def _npz(path: Path) -> Raw:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: Mapping[str, Array] = {key: archive[key] for key in ("x", "y") if key in archive.files}
            found = ", ".join(archive.files) or "nothing"
    except (*UNREADABLE, AttributeError, TypeError) as error:  # the last two: it is one array or no archive
        raise DataError(_unreadable(path, "a NumPy .npz file", error)) from error
    if "x" not in arrays:
        raise DataError(f"{path} has no array 'x' (it holds {found}): save the images as x and the labels, if any, as y")
    return Raw(where=str(path), x=arrays["x"], y=arrays.get("y"), levels=IMAGE_LEVELS)


def _unreadable(path: Path, what: str, error: Exception) -> str:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return f"{path} is not {what} of numbers (object arrays and pickles are refused): save it again with np.save or np.savez"
    return f"{path} is not {what}, or is damaged ({type(error).__name__}): save it again with np.save or np.savez"


BUILT_IN: dict[str, Callable[[], Raw]] = {"sklearn:digits": _digits}
FILES: dict[str, Callable[[Path], Raw]] = {".npy": _npy, ".npz": _npz}


def check_images(name: str, settings: DatasetSettings, raw: Raw, levels: int) -> Array:
    """The images as uint8 (N, C, H, W). Raises DataError, in one line, for what is not that."""
    if raw.x.dtype.kind not in "buif":
        raise DataError(f"{raw.where}: x holds {raw.x.dtype}, not numbers: save it as integers 0 .. {levels - 1}")
    if raw.x.size == 0:
        raise DataError(f"{raw.where}: x is empty (shape {raw.x.shape}): there must be images in it")
    x_NCHW = _channels_first(name, settings, raw)
    _check_values(name, raw.where, x_NCHW, levels)
    return np.ascontiguousarray(x_NCHW, dtype=np.uint8)


def _channels_first(name: str, settings: DatasetSettings, raw: Raw) -> Array:
    """(N, H, W), (N, C, H, W) or (N, H, W, C) as (N, C, H, W).

    With ``shape:`` in params.yaml an array must be of it, channels first or last. Without, the axis of
    length 1, 3 or 4 holds the channels; where both or neither could, the person has to say.
    """
    x = raw.x
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
            f"{raw.where}: x has images of shape {raw.x.shape[1:]}, but params.yaml: datasets.{name}.shape says "
            f"{settings.shape} (C, H, W): correct one of them"
        )
    if raw.x.ndim == 3:
        return x
    first, last = x.shape[1] in CHANNELS, x.shape[3] in CHANNELS
    if first == last:
        raise DataError(
            f"{raw.where}: x has shape {raw.x.shape}, and which axis holds the channels is not clear: "
            f"set datasets.{name}.shape in params.yaml to [C, H, W]"
        )
    return x if first else x.transpose(0, 3, 1, 2)


def _check_values(name: str, where: str, x_NCHW: Array, levels: int) -> None:
    """Every value must be one of the integers 0 .. levels-1."""
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
    """The labels as int64 (N,). Raises DataError where they are not one class number, from 0, an image."""
    y = raw.y
    assert y is not None
    if y.shape != (count,):
        raise DataError(f"{raw.where}: y has shape {y.shape}: expected one label an image, ({count},)")
    whole = y.dtype.kind in "buif" and bool(np.isfinite(y).all() and (y == np.floor(y)).all())
    if not whole or y.min() < 0 or y.max() >= MOST_CLASSES:
        raise DataError(f"{raw.where}: y is not class numbers 0, 1, 2, .. ({y.dtype}): number the classes from 0, or leave y out")
    return y.astype(np.int64)
