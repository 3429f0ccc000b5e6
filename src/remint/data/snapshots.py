"""Files of a snapshot: written and read block by block, whatever their size.

    data.npz          the arrays: x and those of which each example has one value (sources.py)
    x-00000.npy ..    a larger x, in shards (shards.py). Then data.npz has the SHA-256 of each shard in place of x, and its own
                      SHA-256 stands for the whole snapshot

Shapes: N examples, X the axes of one.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from remint.data.blocks import Blocks, concatenate, example_bytes, stored
from remint.data.schema import SNAPSHOT
from remint.data.shards import WHOLE, Writer, write_header
from remint.errors import IntegrityError
from remint.runtime.manifest import full_disk_as_storage_error, sha256_file

DIGESTS = "x_sha256"

Array = np.ndarray[Any, Any]


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes ``out`` when the block ends without an error.

    So an error leaves nothing half, and the former content stays. Raises StorageError if the disk is full.
    """
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    try:
        with full_disk_as_storage_error(out, "nothing of it was kept"):
            temporary.mkdir(parents=True)
            yield temporary
            shutil.rmtree(out, ignore_errors=True)  # never write through a link into DVC's cache
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_arrays(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Write the arrays of a snapshot, x as Blocks or as an array. Equal arrays give equal bytes."""
    x_NX = Blocks.of(arrays["x"])
    if x_NX.nbytes > WHOLE:
        writer = Writer(folder, "x", x_NX.shape, x_NX.dtype)
        for x_BX in x_NX:
            writer.append(x_BX)
        writer.close()
        sha256 = np.array([sha256_file(folder / shard) for shard in writer.names])
        arrays = {DIGESTS: sha256} | {key: array for key, array in arrays.items() if key != "x"}
    with zipfile.ZipFile(folder / SNAPSHOT, "w") as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as stream:  # as np.savez does
                if key != "x":
                    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
                    continue
                write_header(stream, x_NX.shape, x_NX.dtype)
                for x_BX in x_NX:
                    stream.write(np.ascontiguousarray(x_BX).tobytes())


def read_arrays(folder: Path) -> dict[str, Any]:
    """Return the arrays of a snapshot, x as Blocks. Raises IntegrityError, which names the file, if a shard has changed."""
    with np.load(folder / SNAPSHOT, allow_pickle=False) as archive:
        arrays: dict[str, Any] = {key: archive[key] for key in archive.files if key not in ("x", DIGESTS)}
        digests = archive[DIGESTS].tolist() if DIGESTS in archive.files else None
    if digests is None:
        return {"x": _member(folder / SNAPSHOT)} | arrays
    return {"x": concatenate([_shard(folder / f"x-{place:05d}.npy", digest) for place, digest in enumerate(digests)])} | arrays


def _shard(path: Path, digest: str) -> Blocks:
    if not path.is_file() or sha256_file(path) != digest:
        problem = "is damaged" if path.is_file() else "is missing"
        raise IntegrityError(f"{path} {problem}: it is not the shard that {SNAPSHOT} names: import the source again (dvc repro)")
    x_NX = np.load(path, mmap_mode="r", allow_pickle=False)
    return stored(path, x_NX.shape, x_NX.dtype, x_NX.offset)


def _member(path: Path) -> Blocks:
    """Return the array x inside of a snapshot's file."""

    def header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        return shape, dtype

    with zipfile.ZipFile(path) as archive, archive.open("x.npy") as stream:
        shape, dtype = header(stream)
    size = example_bytes(shape, dtype)

    def read(rows: int) -> Iterator[Array]:
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as stream:
            header(stream)
            for at in range(0, shape[0], rows):
                count = min(rows, shape[0] - at)
                yield np.frombuffer(stream.read(count * size), dtype).reshape(count, *shape[1:])

    return Blocks(shape, dtype, read, size)
