"""Features of real examples, kept below REMINT_HOME from one evaluation to the next; without that variable nothing is kept.

    REMINT_HOME/features/KEY-SHA256.npy    f_ND, float64

KEY is the digest of what the features are a function of: dataset version, split, chosen examples, extractor, resize. The
file's own SHA-256 stands in its name, so that one rename makes both; a damaged file is removed and computed again. All of
it can be deleted at any time.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from remint.distributed.world import SINGLE_PROCESS, World
from remint.errors import StorageError
from remint.evaluation.features import Extractor
from remint.records import digest
from remint.runtime.manifest import sha256_file

Array = np.ndarray[Any, Any]


def features(
    dataset: str, split: str, chosen_N: Array, extractor: Extractor, make: Callable[[], Array], world: World = SINGLE_PROCESS
) -> Array:
    """What ``make`` computes, from the file where there is one.

    Args:
        dataset: digest of the DatasetVersion.
        split: of the examples.
        chosen_N: their places in the split, int64.
        world: its ranks compute together, so that all do where one of them finds no file.

    Raises StorageError where the disk is full.
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
        except FileNotFoundError:  # another process found it damaged first
            continue
        path.unlink(missing_ok=True)
    return None


def _write(f_ND: Array, folder: Path, key: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{key}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as stream:
            np.save(stream, f_ND, allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(folder / f"{key}-{sha256_file(temporary)}.npy")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no room to write features below {folder}: free space, or delete that folder, and run again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
