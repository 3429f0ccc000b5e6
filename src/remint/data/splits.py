"""Preparation: one snapshot in, three splits out.

An example's split is a function of its own pixels and of the split's seed, and of nothing else. So data
that is appended moves no example from one split to another, equal images never stand on both sides, and
what a champion was trained on is never in the set that judges its successor.

Shapes: N examples, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from remint.data.arrays import SPLITS, VERSION
from remint.data.sources import SNAPSHOT
from remint.errors import DataError
from remint.manifest import sha256_file
from remint.recipe import DatasetSettings, SplitSettings
from remint.records import DatasetVersion, DataSpec

Array = np.ndarray[Any, Any]


def prepare(name: str, settings: DatasetSettings, raw: Path, out: Path) -> DatasetVersion:
    """Splits the snapshot ``raw/data.npz`` of dataset ``name`` into the arrays that arrays.load reads from ``out``.

    Raises DataError where a split would be empty.
    """
    with np.load(raw / SNAPSHOT, allow_pickle=False) as archive:
        x_NCHW, levels = archive["x"], int(archive["levels"])
        y_N = archive["y"] if "y" in archive.files else None
    split_N = assign(x_NCHW, settings.split)
    shutil.rmtree(out, ignore_errors=True)  # never write through a link into DVC's cache
    out.mkdir(parents=True)
    counts: dict[str, int] = {}
    for index, split in enumerate(SPLITS):
        members_N = split_N == index
        counts[split] = int(members_N.sum())
        if not counts[split]:
            raise DataError(
                f"params.yaml: datasets.{name}.split: none of the {len(x_NCHW)} images falls into {split}: "
                f"use more images, or a larger share for it"
            )
        np.save(out / f"{split}.npy", x_NCHW[members_N], allow_pickle=False)
        if y_N is not None:
            np.save(out / f"{split}_labels.npy", y_N[members_N], allow_pickle=False)
    _, c, h, w = x_NCHW.shape
    version = DatasetVersion(
        name=name,
        source=settings.source,
        raw_sha256=sha256_file(raw / SNAPSHOT),
        spec=DataSpec(shape=(c, h, w), levels=levels, classes=0 if y_N is None else int(y_N.max()) + 1),
        split=settings.split.model_dump(mode="json"),
        counts=counts,
        files={path.name: sha256_file(path) for path in sorted(out.iterdir())},
    )
    version.write(out / VERSION)
    return version


def assign(x_NCHW: Array, split: SplitSettings) -> Array:
    """The split of each image as an index into SPLITS, shape (N,).

    A uniform number in [0, 1) is made of SHA-256(seed, pixels): below ``held_out`` the image is held
    out, in the next ``validation`` it validates, otherwise it trains.
    """
    uniform_N = np.array([_uniform(image_CHW, split.seed) for image_CHW in x_NCHW])
    train, validation, held_out = range(len(SPLITS))
    split_N = np.full(len(x_NCHW), train)
    split_N[uniform_N < split.held_out + split.validation] = validation
    split_N[uniform_N < split.held_out] = held_out
    return split_N


def _uniform(image_CHW: Array, seed: int) -> float:
    state = hashlib.sha256(f"split {seed} {image_CHW.shape}\n".encode())
    state.update(image_CHW.tobytes())
    return (int.from_bytes(state.digest()[:8], "big") >> 11) * 2.0**-53
