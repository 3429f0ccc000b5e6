"""Prepared dataset: memory-mapped arrays, checked against the SHA-256 of their preparation.

    outs/prepared/NAME/
        dataset.json          records.DatasetVersion; its digest is the dataset version
        SPLIT.npy             images uint8 (N, C, H, W), rows float32 (N, D)
        SPLIT-00000.npy ..    the same in shards, in place of SPLIT.npy, if they are large (shards.py)
        SPLIT_labels.npy      int64 (N,), if there are labels
        SPLIT_ids.npy         uint64 (N,), of a split by occurrence: digest of content and occurrence

SPLIT is train, validation or held_out; or calibration, if ``split.calibration`` is above 0.

DVC checks a file when it stores it but not when it links it. Therefore ``load`` hashes each file again, before step 1 of
a training and before each evaluation.

Shapes: N examples, X the axes of one: C, H, W of an image (channels, height, width), D of a table's row.
"""

from __future__ import annotations

import math
import mmap
import re
import resource
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import ValidationError

from remint.data.blocks import Blocks
from remint.data.identity import ID_SEED, digests
from remint.errors import IntegrityError, ResourceError
from remint.records import DatasetVersion, DataSpec
from remint.runtime.manifest import sha256_file

VERSION = "dataset.json"
SPLITS = ("train", "validation", "held_out")
CALIBRATION = "calibration"  # a fourth split, if there is one
OTHER_FILES = 256  # that a process may open beside its shards

Array = np.ndarray[Any, Any]


def shard_names(names: Iterable[str], name: str) -> list[str]:
    """Return those of ``names`` that are shards of the array ``name``, in order."""
    found = [each for each in names if re.fullmatch(rf"{re.escape(name)}-\d{{5,}}\.npy", each)]
    return sorted(found, key=lambda each: (len(each), each))


class ShardedArray:
    """Several memory-mapped arrays, one after the other along the first axis, read as one array (N, X).

    Index it with an integer, a slice, integers or a mask (N,), alone or before indices of the other axes. The result of
    integers or a mask is a copy, as with numpy. ``np.asarray`` copies all of it into memory. What was read of the files does not
    stay in the memory of this process.
    """

    def __init__(self, shards: Sequence[Array]) -> None:
        self.shards = tuple(shards)
        self.ends = np.cumsum([len(shard) for shard in shards])
        self.dtype = shards[0].dtype
        self.shape: tuple[int, ...] = (int(self.ends[-1]), *shards[0].shape[1:])
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize
        self._viewed = self.shards[0]  # the shard of the last view that was returned

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        for shard in self.shards:
            yield from shard
            _unmap(shard)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("an array of several shards cannot be one array without a copy")
        x_NX: Array = np.concatenate(self.shards, dtype=dtype or self.dtype, casting="unsafe")
        for shard in self.shards:
            _unmap(shard)
        return x_NX

    def __dlpack__(self, **about: Any) -> Any:
        """Return all examples, copied, as torch.tensor takes them."""
        return np.asarray(self).__dlpack__(**about)

    def __dlpack_device__(self) -> Any:
        return self.shards[0].__dlpack_device__()

    def __getitem__(self, key: Any) -> Array:
        first, *others = key if isinstance(key, tuple) else (key,)
        if isinstance(first, slice) and first.step in (None, 1):
            return self._range(*first.indices(len(self))[:2], (slice(None), *others))
        place_M = self._places(first)
        found = self._take(place_M)
        return found[(*(slice(None),) * place_M.ndim, *others)] if others else found

    def _places(self, key: Any) -> Array:
        """Return the places that a slice, integers or a mask (N,) mean. Raises IndexError if there is none."""
        if isinstance(key, slice):
            return np.arange(*key.indices(len(self)))
        place_M = np.asarray(key)
        if place_M.dtype == bool:
            return np.flatnonzero(place_M)
        place_M = np.where(place_M < 0, place_M + len(self), place_M).astype(np.int64)
        if place_M.size and not (place_M.min() >= 0 and place_M.max() < len(self)):
            raise IndexError(f"an index is out of bounds for {len(self)} examples")
        return place_M

    def _range(self, start: int, stop: int, key: tuple[Any, ...]) -> Array:
        """Return ``key`` of the examples start .. stop-1: a view if they lie in one shard, else a copy."""
        first = shard = min(int(np.searchsorted(self.ends, start, side="right")), len(self.shards) - 1)
        parts: list[Array] = []
        while not parts or start < stop:
            before = int(self.ends[shard]) - len(self.shards[shard])
            parts.append(self.shards[shard][start - before : max(start, stop) - before][key])
            start, shard = int(self.ends[shard]), shard + 1
        _unmap(self._viewed)
        if len(parts) == 1:
            self._viewed = self.shards[first]
            return parts[0]
        x_NX = np.concatenate(parts)
        for read in self.shards[first:shard]:
            _unmap(read)
        return x_NX

    def locate(self, place_M: Array) -> tuple[Array, Array]:
        """Return the shard of each place, and the index in that shard."""
        shard_M = np.searchsorted(self.ends, place_M, side="right")
        return shard_M, place_M - np.concatenate([[0], self.ends])[shard_M]

    def _take(self, place_M: Array) -> Array:
        """Return a copy of the examples at some places, in their order."""
        x_MX = np.empty((*place_M.shape, *self.shape[1:]), self.dtype)
        shard_M, index_M = self.locate(place_M)
        for shard in np.unique(shard_M):
            here_M = shard_M == shard
            x_MX[here_M] = self.shards[shard][index_M[here_M]]
            _unmap(self.shards[shard])
        return x_MX


def _unmap(shard: Array) -> None:
    """Take the pages of a mapped file out of this process's memory. The next read maps them again from the kernel's cache."""
    if (mapped := getattr(shard, "_mmap", None)) is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Split:
    """The examples of one split."""

    # Images uint8, values 0 .. levels-1; rows float32 as records.DataSpec says. Memory-mapped: an np.memmap, or a ShardedArray,
    # which is indexed in the same way.
    x_NX: Array
    y_N: Array | None  # int64; None without labels
    id_N: Array | None = None  # uint64, of a split by occurrence: examples are the same if these are equal

    def __len__(self) -> int:
        return len(self.x_NX)


@dataclass(frozen=True)
class Dataset:
    """One dataset version: train on the first split, select on the second, evaluate on the third, calibrate on the fourth."""

    version: DatasetVersion
    train: Split
    validation: Split
    held_out: Split
    calibration: Split | None = None  # None: split.calibration is 0

    @property
    def spec(self) -> DataSpec:
        return self.version.spec


def load(folder: Path) -> Dataset:
    """Load the dataset prepared in ``folder``.

    Raises IntegrityError, which names the file, if a byte has changed; ResourceError if it has more shards than a process may
    open.
    """
    remedy = "prepare it again (dvc repro --force)"
    try:
        version = DatasetVersion.read(folder / VERSION)
    except (OSError, ValidationError) as error:
        raise IntegrityError(f"{folder} has no readable {VERSION} ({type(error).__name__}): {remedy}") from error
    for name, expected in sorted(version.files.items()):
        path = folder / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing, but {VERSION} lists it: {remedy}")
        if sha256_file(path) != expected:
            raise IntegrityError(f"{path} is damaged: its SHA-256 differs from the one in {VERSION}: {remedy}")
    _allow_open_files(2 * len(version.files))  # a mapped array holds its file open, and so does a feed (training/feed.py)
    train, validation, held_out = (_split(folder, version, split) for split in SPLITS)
    calibration = _split(folder, version, CALIBRATION) if CALIBRATION in version.counts else None
    return Dataset(version=version, train=train, validation=validation, held_out=held_out, calibration=calibration)


def held_out_digests(folder: Path) -> Array:
    """Return a digest of each held-out example of the dataset prepared in ``folder``, uint64 (N,). Its files are not checked."""
    held_out = _split(folder, DatasetVersion.read(folder / VERSION), SPLITS[-1])
    if held_out.id_N is not None:
        return np.asarray(held_out.id_N)
    return digests(Blocks.of(held_out.x_NX).examples(), ID_SEED, occurrences=False)


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files so that this process may open ``count`` more. Raises ResourceError if it may not."""
    needed = sum(1 for _ in Path("/dev/fd").iterdir()) + count + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ResourceError(f"the dataset needs {needed:,} open files, and the limit is {hard:,}: raise it (ulimit -Hn {needed})")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _split(folder: Path, version: DatasetVersion, split: str) -> Split:
    def read(name: str) -> Array | None:
        return np.load(folder / name, mmap_mode="r", allow_pickle=False) if name in version.files else None

    shards = [np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in shard_names(version.files, split)]
    x_NX = cast(Array, ShardedArray(shards)) if shards else read(f"{split}.npy")
    assert x_NX is not None
    return Split(x_NX, y_N=read(f"{split}_labels.npy"), id_N=read(f"{split}_ids.npy"))
