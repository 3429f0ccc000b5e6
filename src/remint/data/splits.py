"""Preparation: divide one snapshot into three splits, and a fourth if ``split.calibration`` asks for it.

An example's split depends only on its content and the split's seed. Therefore appended data moves no example to another
split, equal examples are always in the same split, and a champion's training data are never in the set that evaluates
its successor.

Where most rows of a table equal others, that would put each combination of values into one split only, and held-out rows would
be combinations that training never saw. There the split also depends on the occurrence: on how many equal rows came before. A
row is then identified by both, and appended, removed or reordered rows move no other row to another split either.

Settings change what decides the split. ``group``: the group instead of the content. ``time``: rows from one time on are held
out; this boundary moves forward only (limits.py). ``stratify``: each class keeps its own limits. ``held_out``: a part of the
source, or another source, is held out; examples that equal one of it are in no split.

Examples are read in blocks. Of each only its digest and its values beside x (class, group, time) stay in memory.

Shapes: N examples, B examples of one block, X the axes of one: C, H, W of an image, D of a table's row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from remint.data.arrays import SPLITS, VERSION
from remint.data.blocks import Blocks
from remint.data.identity import ID_SEED, canonical_examples, canonical_rows, choose_rule, digests, text_words
from remint.data.limits import LIMITS, Limits, class_key, held_out_from, limit_of, shown, time_key
from remint.data.schema import SCHEMA, SNAPSHOT, Schema
from remint.data.shards import Writer
from remint.data.snapshots import new_folder, read_arrays
from remint.errors import DataError
from remint.records import DatasetVersion, DataSpec
from remint.runtime.events import emit
from remint.runtime.manifest import sha256_file
from remint.settings.dataset import DatasetSettings
from remint.settings.split import SplitSettings

PARTS = (*SPLITS, "calibration")
TRAIN, VALIDATION, HELD_OUT, CALIBRATION = range(len(PARTS))
LEFT_OUT = -1  # of every split: an example that equals one of the held-out part or source, or is of its group
FEW = 5  # held-out examples of a class, below which a person is told

Array = np.ndarray[Any, Any]


def prepare(name: str, settings: DatasetSettings, raw: Path, out: Path) -> DatasetVersion:
    """Split the snapshot in ``raw`` of dataset ``name`` into the arrays that arrays.load reads from ``out``.

    Raises DataError if a split would be empty.
    """
    schema = Schema.read(raw / SCHEMA)
    spec, by = schema.spec, settings.split.by or schema.split_by
    arrays = read_arrays(raw)
    limits = Limits.read(raw / LIMITS) if (raw / LIMITS).exists() else Limits()
    split_N = divide(arrays, settings.split, spec, by, limits)
    others = {"labels": arrays["y"]} if "y" in arrays else {}
    if by == "occurrence":
        others["ids"] = digests(_identities(arrays, spec, by), ID_SEED, occurrences=True)
    x_NX: Blocks = arrays["x"]
    if spec.is_table:
        from remint.data import columns

        x_NX = x_NX.map(lambda x_BD: columns.standardise(x_BD, spec.columns))
    names = SPLITS if settings.split.calibration == 0.0 else PARTS
    counts = {split: int((split_N == index).sum()) for index, split in enumerate(names)}
    for split in names:
        if not counts[split]:
            remedy = _remedy(split, split_N, arrays, spec, by, limits)
            raise DataError(f"params.yaml: datasets.{name}.split: none of the {len(x_NX)} examples falls into {split}: {remedy}")
    with new_folder(out) as folder:
        _write_splits(folder, names, split_N, x_NX, others)
        _report_split(split_N, arrays, settings.split, spec, by, limits)
        version = DatasetVersion(
            name=name,
            source=settings.source,
            raw_sha256=sha256_file(raw / SNAPSHOT),
            spec=spec,
            split=_recorded(settings.split) | ({} if by == "content" else {"by": by}),
            counts=counts,
            files={path.name: sha256_file(path) for path in sorted(folder.iterdir())},
        )
        version.write(folder / VERSION)
    return version


def _write_splits(folder: Path, names: Sequence[str], split_N: Array, x_NX: Blocks, others: Mapping[str, Array]) -> None:
    """Write the examples of each split in one pass, and ``others``: arrays (N,) by the end of their files' names."""
    writers = [
        Writer(folder, name, (int((split_N == index).sum()), *x_NX.shape[1:]), x_NX.dtype) for index, name in enumerate(names)
    ]
    at = 0
    for x_BX in x_NX:
        split_B = split_N[at : at + len(x_BX)]
        for index, writer in enumerate(writers):
            writer.append(x_BX[split_B == index])
        at += len(x_BX)
    for index, writer in enumerate(writers):
        writer.close()
        for key, value_N in others.items():
            np.save(folder / f"{writer.name}_{key}.npy", value_N[split_N == index], allow_pickle=False)


def _recorded(split: SplitSettings) -> dict[str, float | str]:
    """Return the settings of a split without those that are off, so that older datasets keep their digest."""
    return {key: value for key, value in split.model_dump(mode="json", exclude={"by"}).items() if value or key == "seed"}


def divide(arrays: Mapping[str, Any], split: SplitSettings, spec: DataSpec, by: str, limits: Limits) -> Array:
    """Return the split of each example of a snapshot as an index into PARTS, shape (N,)."""
    digest_N = _digests(arrays, split, spec, by)
    if split.stratify:
        return assign(digest_N, split, lambda share: np.array(limits.by_class[class_key(split, by, share)])[arrays["y"]])
    split_N = assign(digest_N, split)
    for start in limits.held_out_from.values():
        time_N = arrays["time"]
        split_N[time_N >= np.array(start, time_N.dtype)] = HELD_OUT
    if "held_out" in arrays:
        apart_N = arrays["held_out"]
        split_N[np.isin(digest_N, digest_N[apart_N])] = LEFT_OUT  # rows that repeat have no such digest: each is an example
        split_N[apart_N] = HELD_OUT
    return split_N


def _identities(arrays: Mapping[str, Any], spec: DataSpec, by: str) -> Iterator[Array]:
    """Yield what examples are equal by (X): their content; if rows repeat, also their group, time and source."""
    if not spec.is_table:
        yield from Blocks.of(arrays["x"]).examples()
        return
    others = [arrays[key] for key in ("group", "time", "held_out") if by == "occurrence" and key in arrays]
    words = [other.astype("f8" if other.dtype.kind == "b" else other.dtype).view(np.uint64)[:, None] for other in others]
    at = 0
    for x_BD in Blocks.of(arrays["x"]):
        words_B = [word_N[at : at + len(x_BD)] for word_N in words]
        yield from np.concatenate([*words_B, canonical_rows(x_BD, spec.columns)], axis=1)
        at += len(x_BD)


def _digests(arrays: Mapping[str, Any], split: SplitSettings, spec: DataSpec, by: str) -> Array:
    """Return the digest that decides the split of each example, uint64 (N,)."""
    if "group" in arrays:
        return digests(arrays["group"][:, None], split.seed, occurrences=False)
    return digests(_identities(arrays, spec, by), split.seed, occurrences=by == "occurrence")


def learn_limits(name: str, split: SplitSettings, schema: Schema, arrays: Mapping[str, Any]) -> Limits | None:
    """Return the limits between the splits of a snapshot; None if the shares alone are the limits.

    Raises DataError if there are no classes to stratify by.
    """
    if split.time:
        time_N = arrays["time"]
        return Limits(held_out_from={time_key(split, time_N): held_out_from(split, time_N)})
    if not split.stratify:
        return None
    if not schema.spec.classes:
        raise DataError(f"params.yaml: datasets.{name}.split.stratify: the examples have no classes: remove it")
    by = split.by or schema.split_by
    uniform_N = _uniform(_digests(arrays, split, schema.spec, by))
    by_class = [np.sort(uniform_N[arrays["y"] == label]) for label in range(schema.spec.classes)]
    return Limits(
        by_class={
            class_key(split, by, share): tuple(limit_of(sorted_K, share) for sorted_K in by_class) for share in split.limits
        }
    )


def _remedy(split: str, split_N: Array, arrays: Mapping[str, Any], spec: DataSpec, by: str, limits: Limits) -> str:
    """Return a clause: the way to fill a split that is empty."""
    for start in map(shown, limits.held_out_from.values()):
        if split != "held_out":
            return f"those from {start} on are held out: hold out a shorter time"
        return (
            f"an earlier import held out those from {start} on, and earlier ones may have been trained on: add newer rows, or "
            "raise schema_version to begin anew"
        )
    if left_out := int((split_N == LEFT_OUT).sum()):
        return f"{left_out} that are not held out equal one that is, or are of its group: use others to train on"
    if "group" in arrays:
        groups = len(np.unique(arrays["group"]))
        return f"they form {groups} groups: use more groups, a larger share for it, or another seed"
    if by == "content" and spec.is_table and choose_rule(canonical_examples(arrays["x"], spec)) == "occurrence":
        return "equal rows share a split, and most rows equal another: set split.by: occurrence"
    return "use more examples, or a larger share for it"


def _report_split(
    split_N: Array, arrays: Mapping[str, Any], split: SplitSettings, spec: DataSpec, by: str, limits: Limits
) -> None:
    """Emit events about a split that a person should know of: its rule, and classes with few held-out examples."""
    y_N = arrays.get("y")
    if "group" in arrays:
        shares = {name: float((split_N == index).mean()) for index, name in enumerate(SPLITS)}
        emit("split_by_group", groups=len(np.unique(arrays["group"])), **shares)
    elif by == "occurrence" and "held_out" not in arrays:
        emit("split_by_occurrence", rows=len(split_N))
    for start in limits.held_out_from.values():
        emit("split_by_time", start=shown(start), rows=int((split_N == HELD_OUT).sum()))
    if "held_out" in arrays:
        rows, left_out = (int((split_N == index).sum()) for index in (HELD_OUT, LEFT_OUT))
        emit("split_by_source", rows=rows, held_out=split.held_out, left_out=left_out)
    for label in range(spec.classes if y_N is not None else 0):
        held_out = int(((y_N == label) & (split_N == HELD_OUT)).sum())
        if held_out < FEW:
            emit("few_held_out", label=spec.class_names[label] if spec.class_names else label, count=held_out)


def _uniform(digest_N: Array) -> Array:
    """Return a number in [0, 1) for each digest, float64 (N,)."""
    uniform_N: Array = (digest_N >> np.uint64(11)) * 2.0**-53
    return uniform_N


def assign(digest_N: Array, split: SplitSettings, limit: Callable[[float], Any] = float) -> Array:
    """Return the split of each example as an index into PARTS, shape (N,).

    A digest gives a uniform number u in [0, 1): u < ``held_out`` is held out, u < ``held_out`` + ``validation`` is validation,
    u >= 1 - ``calibration`` is calibration, the others are training. Thus calibration takes from training only. ``limit``
    moves these limits: it returns that of an accumulated share, for each example if it is an array (N,).
    """
    uniform_N = _uniform(digest_N)
    split_N = np.full(len(digest_N), TRAIN)
    up_to_held_out, up_to_validation, *up_to_calibration = map(limit, split.limits)
    for from_N in up_to_calibration:
        split_N[uniform_N >= from_N] = CALIBRATION
    split_N[uniform_N < up_to_validation] = VALIDATION
    split_N[uniform_N < up_to_held_out] = HELD_OUT
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
    words: Array = text_words(list(place))[[place[text] for text in text_N]]
    return words
