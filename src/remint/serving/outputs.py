"""Results as files, written in parts. A file or folder appears once it is complete, and never half.

    images   .png a grid; .npy uint8 (N, C, H, W); .npz x, and y where there are classes; a folder: a .png of each
    a table  .csv, .parquet: rows in the form of the source
    numbers  .npy (N, D); .npz under their name; .csv, .parquet with columns

Shapes: N examples, B examples of one part, X the axes of one example, D numbers of one.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from remint.data import rows
from remint.data.container import SPREAD
from remint.data.shards import write_header
from remint.data.values import IMAGE_LEVELS
from remint.errors import SettingsError
from remint.records import DataSpec
from remint.runtime import scratch
from remint.runtime.manifest import full_disk_as_storage_error

GRID, ARRAYS, TABLES = (".png",), (".npy", ".npz"), (".csv", ".parquet")
MOST_IN_GRID = 4_096
MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels. A fourth would be read as opacity, and put on white

Array = np.ndarray[Any, Any]
Part = tuple[Array, Array | None]  # x_BX in the model's form, and the classes y_B, or None


def check_examples(path: Path, spec: DataSpec) -> None:
    """Raise SettingsError if examples of such data cannot be written to a file or folder of this name."""
    if spec.is_table:
        check_table(path)
        return
    check(path, (*GRID, *ARRAYS, ""), "images: give a name that ends in .png (a grid), .npy or .npz, or a folder's name")
    if path.suffix in ("", *GRID) and spec.image[0] not in MODES:
        raise SettingsError(
            f"-o {path}: images of {spec.image[0]} channels are no pictures: give a name that ends in .npy or .npz"
        )


def check_numbers(path: Path) -> None:
    """Raise SettingsError if numbers cannot be written to a file of this name."""
    check(path, (*ARRAYS, *TABLES), "numbers: give a name that ends in .npy, .npz, .csv or .parquet")


def check_table(path: Path) -> None:
    """Raise SettingsError if a table cannot be written to a file of this name."""
    check(path, TABLES, "a table: give a name that ends in .csv or .parquet")


def check_picture(path: Path) -> None:
    """Raise SettingsError if a picture cannot be written to a file of this name."""
    check(path, GRID, "a picture: give a name that ends in .png")


def check(path: Path, suffixes: tuple[str, ...], what: str) -> None:
    """Raise SettingsError if a result cannot be written to this name. ``suffixes``: of files; "" of a folder."""
    if path.suffix not in suffixes:
        raise SettingsError(f"-o {path}: the result is {what}")
    with disk_errors(path):
        if not path.name:
            raise SettingsError(f"-o {path}: no name is given: the result is {what}")
        if not path.absolute().parent.is_dir():
            raise SettingsError(f"-o {path}: the folder {path.absolute().parent} does not exist")
        if path.is_dir() and (path.suffix or any(path.iterdir())):
            raise SettingsError(f"-o {path}: the folder exists: name a new one")
        if path.exists() and not path.is_dir() and not (path.suffix and path.is_file()):
            raise SettingsError(f"-o {path}: it exists and is no {'regular file' if path.suffix else 'folder'}: name a new one")


def write_examples(
    path: Path, spec: DataSpec, parts: Iterable[Part], count: int, title: str = "", columns: int | None = None
) -> None:
    """Write ``count`` examples. ``title`` and ``columns``: of a grid.

    Raises SettingsError or StorageError if the file cannot be written, SettingsError if a grid would have too many images.
    """
    if path.suffix in GRID and count > MOST_IN_GRID:
        raise SettingsError(f"-o {path}: {count:,} images are too many for a grid: name a folder, or an .npz file")
    with whole(path) as temporary:
        if spec.is_table:
            rows.write(temporary, (rows.to_table(spec, x_ND, y_N) for x_ND, y_N in parts), spec)
        elif path.suffix in GRID:
            from remint.evaluation import plots  # matplotlib takes a second to import

            plots.sample_grid(temporary, np.concatenate([x for x, _ in parts]), spec.levels, title=title, columns=columns)
        elif path.suffix in ARRAYS:
            _write_arrays(temporary, "x", _with_labels(spec, parts), count, spec.shape, np.uint8)
        else:
            _write_folder(temporary, spec, parts)


def write_numbers(path: Path, name: str, parts: Iterable[Array], count: int, size: int) -> None:
    """Write numbers, float32 (N, D), of ``count`` examples under a name: of the array, or of the columns with their number."""
    with whole(path) as temporary:
        if path.suffix in ARRAYS:
            _write_arrays(temporary, name, ((part, None) for part in parts), count, (size,), np.float32)
            return
        names = [f"{name}{place}" for place in range(size)]
        tables = (pa.table(dict(zip(names, part.T, strict=True))) for part in parts)
        rows.write_tables(temporary, tables)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table. Raises SettingsError or StorageError if the file cannot be written."""
    with whole(path) as temporary:
        rows.write_tables(temporary, [table])


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path of the same ending, which becomes ``path`` when the block ends without an error.

    A link stays a link: the file that it leads to is written.
    """
    with disk_errors(path):
        suffix, path = path.suffix, Path(os.path.realpath(path))
        with scratch.folder(beside=path) as folder:
            temporary = folder / f"written{suffix}"
            yield temporary
            if path.is_dir():
                path.rmdir()  # it is empty
            temporary.replace(path)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise StorageError in place of the OSError of a full disk, SettingsError in place of any other."""
    try:
        with full_disk_as_storage_error(path, "nothing was written"):
            yield
    except OSError as error:
        raise SettingsError(f"-o {path}: cannot be written: {error.strerror or error}") from error


def _write_arrays(path: Path, name: str, parts: Iterable[Part], count: int, shape: Sequence[int], dtype: Any) -> None:
    if path.suffix == ".npy":
        with path.open("wb") as stream:
            write_header(stream, (count, *shape), np.dtype(dtype))
            for x_BX, _ in parts:
                stream.write(np.ascontiguousarray(x_BX, dtype).tobytes())
        return
    classes: list[Array] = []
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            write_header(member, (count, *shape), np.dtype(dtype))
            for x_BX, y_B in parts:
                member.write(np.ascontiguousarray(x_BX, dtype).tobytes())
                classes += [] if y_B is None else [y_B]
        if classes:
            with archive.open("y.npy", "w") as member:
                np.lib.format.write_array(member, np.concatenate(classes), allow_pickle=False)


def _with_labels(spec: DataSpec, parts: Iterable[Part]) -> Iterator[Part]:
    """Yield the parts with the labels of the source in place of classes: names that are numbers become these numbers."""
    numbers = np.array(list(map(int, spec.class_names))) if spec.class_names and all(map(str.isdigit, spec.class_names)) else None
    for x_BX, y_B in parts:
        yield x_BX, y_B if numbers is None or y_B is None else numbers[y_B]


def _write_folder(folder: Path, spec: DataSpec, parts: Iterable[Part]) -> None:
    """Write one .png for each image, in a folder for each class, if there are classes."""
    names = spec.class_names or tuple(str(y) for y in range(spec.classes))
    folder.mkdir()
    at = 0
    for x_BX, y_B in parts:
        for place, x_CHW in enumerate(x_BX):
            inside = folder if y_B is None else folder / names[int(y_B[place])]
            inside.mkdir(exist_ok=True)
            write_png(inside / f"{at:06d}.png", x_CHW, spec.levels)
            at += 1


def write_png(path: Path, x_CHW: Array, levels: int) -> None:
    """Write one image; its levels are spread over 0 .. 255, as image files have them. A text says so: it is read to the bit."""
    scaled = np.rint(x_CHW.astype(np.float64) * (255 / (levels - 1))).astype(np.uint8).transpose(1, 2, 0)
    text = PngInfo()
    if levels < IMAGE_LEVELS:
        text.add(b"tEXt", SPREAD + str(levels).encode())
    Image.fromarray(scaled.squeeze(2) if scaled.shape[2] == 1 else scaled, MODES[len(x_CHW)]).save(path, pnginfo=text)
