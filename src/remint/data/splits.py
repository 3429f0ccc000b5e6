"""Preparation: divide one snapshot into three splits.

An example's split depends only on its content and the split's seed. Therefore appended data moves no example to another
split, equal examples are always in the same split, and a champion's training data are never in the set that evaluates
its successor.

Shapes: N examples, X the axes of one: C, H, W of an image, D of a table's row.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from remint.data.arrays import SPLITS, VERSION
from remint.data.schema import SCHEMA, SNAPSHOT, Schema
from remint.errors import DataError
from remint.records import Column, DatasetVersion
from remint.runtime.manifest import sha256_file
from remint.settings.recipe import DatasetSettings, SplitSettings

Array = np.ndarray[Any, Any]


def prepare(name: str, settings: DatasetSettings, raw: Path, out: Path) -> DatasetVersion:
    """Split the snapshot in ``raw`` of dataset ``name`` into the arrays that arrays.load reads from ``out``.

    Raises DataError if a split would be empty.
    """
    spec = Schema.read(raw / SCHEMA).spec
    with np.load(raw / SNAPSHOT, allow_pickle=False) as archive:
        x_NX = archive["x"]
        y_N = archive["y"] if "y" in archive.files else None
    if spec.is_table:
        from remint.data import columns

        split_N = assign(canonical_rows(x_NX, spec.columns), settings.split)
        x_NX = columns.standardise(x_NX, spec.columns)
    else:
        split_N = assign(x_NX, settings.split)
    shutil.rmtree(out, ignore_errors=True)  # never write through a link into DVC's cache
    out.mkdir(parents=True)
    counts: dict[str, int] = {}
    for index, split in enumerate(SPLITS):
        members_N = split_N == index
        counts[split] = int(members_N.sum())
        if not counts[split]:
            raise DataError(
                f"params.yaml: datasets.{name}.split: none of the {len(x_NX)} examples falls into {split}: "
                f"use more examples, or a larger share for it"
            )
        np.save(out / f"{split}.npy", x_NX[members_N], allow_pickle=False)
        if y_N is not None:
            np.save(out / f"{split}_labels.npy", y_N[members_N], allow_pickle=False)
    version = DatasetVersion(
        name=name,
        source=settings.source,
        raw_sha256=sha256_file(raw / SNAPSHOT),
        spec=spec,
        split=settings.split.model_dump(mode="json"),
        counts=counts,
        files={path.name: sha256_file(path) for path in sorted(out.iterdir())},
    )
    version.write(out / VERSION)
    return version


def assign(x_NX: Array, split: SplitSettings) -> Array:
    """Return the split of each example as an index into SPLITS, shape (N,).

    SHA-256(seed, content) gives a uniform number u in [0, 1): u < ``held_out`` is held out,
    u < ``held_out`` + ``validation`` is validation, the others are training.
    """
    uniform_N = np.array([_uniform(x_X, split.seed) for x_X in x_NX])
    train, validation, held_out = range(len(SPLITS))
    split_N = np.full(len(x_NX), train)
    split_N[uniform_N < split.held_out + split.validation] = validation
    split_N[uniform_N < split.held_out] = held_out
    return split_N


def canonical_rows(x_ND: Array, columns: tuple[Column, ...]) -> Array:
    """Return the part of each row that decides its split, uint64 (N, D). Column order and schema do not change it.

    Numbers are in single precision, as models receive them, so rows that are equal for a model get the same split. A
    category is the hash of its text, since its index may change with the schema. Columns are sorted by name.
    """
    order = sorted(range(len(columns)), key=lambda d: columns[d].name)
    return np.stack([_canonical(x_ND[:, d], columns[d]) for d in order], axis=1)


def _canonical(x_N: Array, column: Column) -> Array:
    missing_N = np.isnan(x_N)
    if column.numeric:
        with np.errstate(over="ignore"):
            single_N = x_N.astype(np.float32) + np.float32(0.0)  # -0.0 becomes 0.0
        words_N = single_N.view(np.uint32).astype(np.uint64)
    else:
        texts = [hashlib.sha256(category.encode()).digest()[:8] for category in column.categories]
        word_K = np.array([int.from_bytes(text, "little") for text in texts], dtype=np.uint64)
        words_N = word_K[np.where(missing_N, 0, x_N).astype(np.int64)]
    return np.where(missing_N, np.uint64(2**64 - 1), words_N)


def _uniform(x_X: Array, seed: int) -> float:
    state = hashlib.sha256(f"split {seed} {x_X.shape}\n".encode())
    state.update(x_X.tobytes())
    return (int.from_bytes(state.digest()[:8], "big") >> 11) * 2.0**-53
