"""Scarce classes of a person's examples, and the synthetic examples that fill them up.

Shapes: N examples, M of them, B of one part, K classes, X the axes of one example.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from remint.data.blocks import Blocks
from remint.errors import SettingsError, UserError
from remint.records import DataSpec
from remint.serving import outputs
from remint.serving.blocks import Progress, silent
from remint.serving.inputs import Examples
from remint.serving.model import ServedModel

PART = 1_024  # samples drawn at a time

Array = np.ndarray[Any, Any]


def check_conditional(served: ServedModel) -> None:
    """Raise UserError unless the model draws a class that it is given."""
    if not served.conditional:
        raise UserError(f"{served.ref} does not know the classes: augment needs a model that was trained with conditional: true")


def class_names(spec: DataSpec) -> tuple[str, ...]:
    return spec.class_names or tuple(str(y) for y in range(spec.classes))


def classes_in(examples: Examples) -> Array:
    """Return the class of each example, int64 (N,). Raises SettingsError if the input has no classes."""
    if examples.y_N is None:
        raise SettingsError("the input has no classes: give the label's column, or a folder for each class")
    return examples.y_N


def scarcity(served: ServedModel, examples: Examples, per_class: int) -> Array:
    """Return the number of examples that each class lacks, int64 (K,). Raises SettingsError if none lacks any."""
    given_K = np.bincount(classes_in(examples), minlength=served.spec.classes)
    lacking_K: Array = np.maximum(per_class - given_K, 0)
    if not lacking_K.any():
        raise SettingsError(f"--per-class {per_class}: each class has {given_K.min():,} examples or more: give a larger number")
    return lacking_K


def drawn(served: ServedModel, lacking_K: Array, seed: int, progress: Progress = silent) -> Iterator[outputs.Part]:
    """Yield parts of the synthetic examples, class after class, with their classes."""
    done, total = 0, int(lacking_K.sum())
    for y, lacking in enumerate(lacking_K.tolist()):
        for at in range(0, lacking, PART):
            places = [(seed, index) for index in range(at, min(at + PART, lacking))]
            x_BX, y_B = served.draw(places, [y] * len(places))
            done += len(places)
            progress(done, total)
            yield x_BX, y_B


def picked(x_NX: Blocks, places_M: Array) -> Array:
    """Return the examples at these places, in ascending order, (M, X)."""
    parts, at = [], 0
    for x_BX in x_NX:
        parts.append(x_BX[places_M[(places_M >= at) & (places_M < at + len(x_BX))] - at])
        at += len(x_BX)
    return np.concatenate(parts)
