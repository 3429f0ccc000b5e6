"""Cache of features of real examples below REMINT_HOME. Without that variable nothing is cached.

    REMINT_HOME/features/KEY-SHA256.npy    f_ND, float64

KEY is the digest of dataset version, split, chosen examples, extractor and resize. The file's name contains its SHA-256:
one rename publishes the file and its checksum together. A damaged file is removed and computed again. The folder can be
deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from remint.distributed.world import SINGLE_PROCESS, World
from remint.evaluation.features import Extractor
from remint.records import digest
from remint.runtime.manifest import full_disk_as_storage_error, sha256_file

Array = np.ndarray[Any, Any]


def features(
    dataset: str, split: str, chosen_N: Array, extractor: Extractor, make: Callable[[], Array], world: World = SINGLE_PROCESS
) -> Array:
    """Return the cached features, or compute them with ``make`` and cache them.

    Args:
        dataset: digest of the DatasetVersion.
        split: split of the examples.
        chosen_N: indices of the examples in the split, int64.
        make: computes the features f_ND.
        world: its ranks compute together: if one of them finds no file, all compute.

    Raises StorageError if the disk is full.
    """
    home = os.environ.get("REMINT_HOME")
    if not home:
        return make()
    chosen = hashlib.sha256(np.ascontiguousarray(chosen_N, dtype="<i8").tobytes()).hexdigest()
    how = {"extractor": extractor.sha256, "resize": extractor.resize}
    key = digest({"dataset": dataset, "split": split, "chosen": chosen, **how})
    folder = Path(home).absolute() / "features"
    found = _read(folder, key)
    if world.any(found is None) or found is None:
        found = make()
        if world.leads:
            _write(found, folder, key)
    return found


def _read(folder: Path, key: str) -> Array | None:
    for path in folder.glob(f"{key}-*.npy"):
        try:
            if sha256_file(path) == path.stem.partition("-")[2]:
                array: Array = np.load(path, allow_pickle=False)
                return array
        except FileNotFoundError:  # another process removed the damaged file first
            continue
        path.unlink(missing_ok=True)
    return None


def _write(f_ND: Array, folder: Path, key: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{key}.{os.getpid()}.tmp"
    try:
        with full_disk_as_storage_error(folder, "all of it can be deleted"):
            with temporary.open("wb") as stream:
                np.save(stream, f_ND, allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.rename(folder / f"{key}-{sha256_file(temporary)}.npy")
    finally:
        temporary.unlink(missing_ok=True)
