"""Limits between the splits that are learnt from the data: of split.time and split.stratify.

    REMINT_HOME/schemas/NAME-VERSION.limits.json    of all imports; see schema.py for VERSION
    outs/raw/NAME/limits.json                       those of one snapshot, versioned with it

Once learnt they stay, or in time move on, so that no example is held out that was trained on.

Shapes: N examples, K examples of one class.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from remint.data.schema import Schema, schema_path
from remint.errors import DataError
from remint.records import Record
from remint.runtime.locks import locked
from remint.settings.split import SplitSettings

LIMITS = "limits.json"

Array = np.ndarray[Any, Any]


class Limits(Record):
    """Limits between the splits that are learnt from the data and kept, so that a trained example is never held out."""

    held_out_from: dict[str, float | str] = {}  # by column and duration: first time that is held out; it only moves on
    by_class: dict[str, tuple[float, ...]] = {}  # by rule, seed and share: a limit in [0, 1] for each class; it never moves

    def joined(self, found: Limits) -> Limits:
        """Return these limits, moved on by those found in newer data."""
        starts = dict(self.held_out_from)
        for key, start in found.held_out_from.items():
            starts[key] = max(start, starts.get(key, start))  # the key tells dates from numbers
        return Limits(held_out_from=starts, by_class=found.by_class | self.by_class)

    def only(self, keys: Limits) -> Limits:
        """Return the limits that ``keys`` has, too."""
        return Limits(
            held_out_from={key: self.held_out_from[key] for key in keys.held_out_from},
            by_class={key: self.by_class[key] for key in keys.by_class},
        )


def keep_limits(found: Limits, schema: Schema, folder: Path) -> Limits:
    """Join limits with those of earlier imports, write them, and return those that ``found`` has."""
    path = schema_path(folder, schema.dataset, schema.version).with_suffix(f".{LIMITS}")
    with locked(folder, make=False):
        try:
            before = Limits.read(path)
        except FileNotFoundError:
            before = Limits()
        except ValidationError as error:
            raise DataError(f"{path} does not hold limits of splits: restore it from another copy of the folder") from error
        joined = before.joined(found)
        if joined != before:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as temporary:
                joined.write(Path(temporary.name))
                os.fsync(temporary.fileno())
            Path(temporary.name).replace(path)
    return joined.only(found)


def time_key(split: SplitSettings, time_N: Array) -> str:
    return f"{split.time} {split.held_out}{' of dates' if time_N.dtype.kind == 'M' else ''}"


def held_out_from(split: SplitSettings, time_N: Array) -> float | str:
    """Return the first time that is held out: a number, or a date as text."""
    if split.newest_hours is not None:
        return str(time_N.max() - np.timedelta64(split.newest_hours, "h"))
    assert isinstance(split.held_out, float)
    start = np.sort(time_N)[len(time_N) - max(1, round(len(time_N) * split.held_out))]
    return str(start) if time_N.dtype.kind == "M" else float(start)


def shown(start: float | str) -> str:
    """Return a start as a person writes it."""
    return start.removesuffix(".000000").removesuffix("T00:00:00") if isinstance(start, str) else f"{start:.10g}"


def class_key(split: SplitSettings, by: str, share: float) -> str:
    return f"by {by}, seed {split.seed}, {share:.6g}"


def limit_of(sorted_K: Array, share: float) -> float:
    """Return the number nearest to ``share`` that has this share of the sorted numbers below it, up to rounding."""
    below = round(share * len(sorted_K))
    least = np.nextafter(sorted_K[below - 1], 2.0) if below else 0.0
    most = sorted_K[below] if below < len(sorted_K) else 1.0
    return float(np.clip(share, least, most))
