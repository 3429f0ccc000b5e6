"""Prepared dataset: memory-mapped arrays, checked against the SHA-256 of their preparation.

    outs/prepared/NAME/
        dataset.json          records.DatasetVersion; its digest is the dataset version
        SPLIT.npy             images uint8 (N, C, H, W), rows float32 (N, D)
        SPLIT_labels.npy      int64 (N,), if there are labels
        SPLIT_ids.npy         uint64 (N,), of a split by occurrence: digest of content and occurrence

SPLIT is train, validation or held_out; or calibration, if ``split.calibration`` is above 0.

DVC checks a file when it stores it but not when it links it. Therefore ``load`` hashes each file again, before step 1 of
a training and before each evaluation.

Shapes: N examples, X the axes of one: C, H, W of an image (channels, height, width), D of a table's row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from remint.errors import IntegrityError
from remint.records import DatasetVersion, DataSpec
from remint.runtime.manifest import sha256_file

VERSION = "dataset.json"
SPLITS = ("train", "validation", "held_out")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Split:
    """The examples of one split."""

    x_NX: Array  # images uint8, values 0 .. levels-1; rows float32 as records.DataSpec says; memory-mapped
    y_N: Array | None  # int64; None without labels
    id_N: Array | None = None  # uint64, of a split by occurrence: examples are the same if these are equal

    def __len__(self) -> int:
        return len(self.x_NX)


@dataclass(frozen=True)
class Dataset:
    """One dataset version with three splits: train on the first, select on the second, evaluate on the third."""

    version: DatasetVersion
    train: Split
    validation: Split
    held_out: Split

    @property
    def spec(self) -> DataSpec:
        return self.version.spec


def load(folder: Path) -> Dataset:
    """Load the dataset prepared in ``folder``. Raises IntegrityError, which names the file, if a byte has changed."""
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
    train, validation, held_out = (_split(folder, version, split) for split in SPLITS)
    return Dataset(version=version, train=train, validation=validation, held_out=held_out)


def _split(folder: Path, version: DatasetVersion, split: str) -> Split:
    def read(name: str) -> Array | None:
        return np.load(folder / name, mmap_mode="r", allow_pickle=False) if name in version.files else None

    x_NX = read(f"{split}.npy")
    assert x_NX is not None
    return Split(x_NX, y_N=read(f"{split}_labels.npy"), id_N=read(f"{split}_ids.npy"))
