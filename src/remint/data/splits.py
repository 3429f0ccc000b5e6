"""Preparation: divide one snapshot into three splits, and a fourth for calibration if ``split.calibration`` asks for it.

An example's split depends only on its content and the split's seed. Therefore appended data moves no example to another
split, equal examples are always in the same split, and a champion's training data are never in the set that evaluates
its successor.

Where most rows of a table equal others, that would put each combination of values into one split only, and held-out rows would
be combinations that training never saw. There the split also depends on the occurrence: on how many equal rows came before. A
row is then identified by both, and appended, removed or reordered rows move no other row to another split either.

Shapes: N examples, X the axes of one: C, H, W of an image, D of a table's row.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from remint.data.arrays import SPLITS, VERSION
from remint.data.schema import SCHEMA, SNAPSHOT, Schema
from remint.errors import DataError
from remint.records import Column, DatasetVersion, DataSpec
from remint.runtime.events import emit
from remint.runtime.manifest import sha256_file
from remint.settings.recipe import DatasetSettings, SplitSettings

PARTS = (*SPLITS, "calibration")
MOST = 0.5  # share of rows that equal another row, above which occurrences count
ID_SEED = 0  # of ids, which are the same for every seed of the split
FEW = 5  # held-out examples of a class, below which a person is told

Array = np.ndarray[Any, Any]


def prepare(name: str, settings: DatasetSettings, raw: Path, out: Path) -> DatasetVersion:
    """Split the snapshot in ``raw`` of dataset ``name`` into the arrays that arrays.load reads from ``out``.

    Raises DataError if a split would be empty.
    """
    schema = Schema.read(raw / SCHEMA)
    spec, by = schema.spec, settings.split.by or schema.split_by
    with np.load(raw / SNAPSHOT, allow_pickle=False) as archive:
        found = dict(archive)
    x_NX, y_N, group_N = found["x"], found.get("y"), found.get("group")
    if spec.is_table:
        from remint.data import columns

        content_NX = canonical_rows(x_NX, spec.columns)
        x_NX = columns.standardise(x_NX, spec.columns)
    else:
        content_NX = x_NX
    identity_NX = content_NX
    if group_N is not None and by == "occurrence":  # equal rows of two groups are two rows
        identity_NX = np.concatenate([group_N[:, None], content_NX], axis=1)
    id_N = digests(identity_NX, ID_SEED, occurrences=True) if by == "occurrence" else None
    if group_N is not None:
        digest_N = digests(group_N[:, None], settings.split.seed, occurrences=False)
    else:
        digest_N = digests(identity_NX, settings.split.seed, occurrences=by == "occurrence")
    split_N = assign(digest_N, settings.split)
    shutil.rmtree(out, ignore_errors=True)  # never write through a link into DVC's cache
    out.mkdir(parents=True)
    counts: dict[str, int] = {}
    for index, split in enumerate(SPLITS if settings.split.calibration == 0.0 else PARTS):
        members_N = split_N == index
        counts[split] = int(members_N.sum())
        if not counts[split]:
            remedy = "use more examples, or a larger share for it"
            if group_N is not None:
                remedy = f"they form {len(np.unique(group_N))} groups: use more groups, a larger share for it, or another seed"
            elif by == "content" and spec.is_table and choose_rule(content_NX) == "occurrence":
                remedy = "equal rows share a split, and most rows equal another: set split.by: occurrence"
            raise DataError(f"params.yaml: datasets.{name}.split: none of the {len(x_NX)} examples falls into {split}: {remedy}")
        np.save(out / f"{split}.npy", x_NX[members_N], allow_pickle=False)
        if y_N is not None:
            np.save(out / f"{split}_labels.npy", y_N[members_N], allow_pickle=False)
        if id_N is not None:
            np.save(out / f"{split}_ids.npy", id_N[members_N], allow_pickle=False)
    _report_split(split_N, y_N, group_N, spec, by)
    version = DatasetVersion(
        name=name,
        source=settings.source,
        raw_sha256=sha256_file(raw / SNAPSHOT),
        spec=spec,
        split=_recorded(settings.split) | ({} if by == "content" else {"by": by}),
        counts=counts,
        files={path.name: sha256_file(path) for path in sorted(out.iterdir())},
    )
    version.write(out / VERSION)
    return version


def _recorded(split: SplitSettings) -> dict[str, float | str]:
    """Return the settings of a split without those that are off, so that older datasets keep their digest."""
    return {key: value for key, value in split.model_dump(mode="json", exclude={"by"}).items() if value or key == "seed"}


def _report_split(split_N: Array, y_N: Array | None, group_N: Array | None, spec: DataSpec, by: str) -> None:
    """Emit events about a split that a person should know of: its rule, and classes with few held-out examples."""
    if group_N is not None:
        shares = {split: float((split_N == index).mean()) for index, split in enumerate(SPLITS)}
        emit("split_by_group", groups=len(np.unique(group_N)), **shares)
    elif by == "occurrence":
        emit("split_by_occurrence", rows=len(split_N))
    for label in range(spec.classes if y_N is not None else 0):
        held_out = int(((y_N == label) & (split_N == SPLITS.index("held_out"))).sum())
        if held_out < FEW:
            emit("few_held_out", label=spec.class_names[label] if spec.class_names else label, count=held_out)


def choose_rule(x_NX: Array) -> Literal["content", "occurrence"]:
    """Return the rule of a table: ``occurrence`` if most rows equal another row."""
    _, count_K = np.unique(x_NX, axis=0, return_counts=True)
    return "occurrence" if count_K[count_K > 1].sum() > MOST * len(x_NX) else "content"


def digests(x_NX: Array, seed: int, *, occurrences: bool) -> Array:
    """Return the first 8 bytes of SHA-256(seed, content) of each example, uint64 (N,).

    ``occurrences``: with the number of equal examples before it, if there are any.
    """
    before: Counter[bytes] = Counter()
    digest_N = np.empty(len(x_NX), np.uint64)
    for index, x_X in enumerate(x_NX):
        state = hashlib.sha256(f"split {seed} {x_X.shape}\n".encode())
        state.update(x_X.tobytes())
        if occurrences:
            key = state.digest()
            if before[key]:
                state.update(f"\noccurrence {before[key]}".encode())
            before[key] += 1
        digest_N[index] = int.from_bytes(state.digest()[:8], "big")
    return digest_N


def assign(digest_N: Array, split: SplitSettings) -> Array:
    """Return the split of each example as an index into PARTS, shape (N,).

    A digest gives a uniform number u in [0, 1): u < ``held_out`` is held out, u < ``held_out`` + ``validation`` is validation,
    u >= 1 - ``calibration`` is calibration, the others are training. Thus calibration takes from training only.
    """
    uniform_N = (digest_N >> np.uint64(11)) * 2.0**-53
    train, validation, held_out, calibration = range(len(PARTS))
    split_N = np.full(len(digest_N), train)
    split_N[uniform_N >= 1.0 - split.calibration] = calibration
    split_N[uniform_N < split.held_out + split.validation] = validation
    split_N[uniform_N < split.held_out] = held_out
    return split_N


def group_words(key: str, split: SplitSettings, text_N: Sequence[str]) -> Array:
    """Return the hash of each example's group, uint64 (N,).

    ``key``: of params.yaml, for the error. Raises DataError if one group is larger than the training split.
    """
    ((largest, count),) = Counter(text_N).most_common(1)
    share = count / len(text_N)
    if share > split.training:
        raise DataError(
            f"{key}: group {largest[:40]!r} holds {share:.0%} of the {len(text_N)} examples, more than the training split's "
            f"share of {split.training:.0%}: choose smaller groups"
        )
    place = {text: index for index, text in enumerate(dict.fromkeys(text_N))}
    words: Array = _words(list(place))[[place[text] for text in text_N]]
    return words


def _words(texts: Sequence[str]) -> Array:
    """Return the first 8 bytes of SHA-256 of each text, uint64 (K,)."""
    return np.array([int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") for text in texts], dtype=np.uint64)


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
        words_N = _words(column.categories)[np.where(missing_N, 0, x_N).astype(np.int64)]
    return np.where(missing_N, np.uint64(2**64 - 1), words_N)
