"""Served model: a registered bundle that draws samples.

Shapes: N requested samples, X the axes of one example (C, H, W of an image, D of a table's row).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from remint.data import rows
from remint.errors import SettingsError, UserError
from remint.models.bundle import MODEL, load_model
from remint.models.contract import CanSample
from remint.models.draw import draw
from remint.records import DataSpec
from remint.settings.base import did_you_mean


@dataclass(frozen=True)
class ServedModel:
    """A model that can sample, with the description of its data."""

    model: CanSample
    spec: DataSpec
    device: str = "cpu"

    def sample(self, count: int, seed: int, of_class: int | None = None) -> np.ndarray:
        """Return x_NX: images as uint8, table rows as in records.DataSpec. Sample i is a function of (seed, i, class) alone."""
        return self.draw([(seed, index) for index in range(count)], None if of_class is None else [of_class] * count)[0]

    def draw(
        self, places: Sequence[tuple[int, int]], classes: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return x_NX, for each (seed, index) the sample with that index in the series of that seed, and y_N, the class of each.

        ``classes``: the wanted classes; by default the model draws them. Raises SettingsError if classes are given and the
        model is not conditional.
        """
        if classes is not None and not getattr(self.model, "conditional", False):
            raise SettingsError("this model was not trained with model.conditional: true: remove the class")
        return draw(self.model, self.spec, places, classes, self.device)

    def class_named(self, name: str) -> int:
        """Return the number of a class from its name; without names, from the number as text.

        Raises SettingsError, with the nearest name, if the class does not exist.
        """
        names = list(self.spec.class_names) or [str(y) for y in range(self.spec.classes)]
        if self.spec.label is not None and self.spec.label.type == "bool":
            name = name.lower()  # a DataFrame has True where the class is named true
        if name not in names and name.removesuffix(".0") in names:
            return names.index(name.removesuffix(".0"))  # a DataFrame has 1.0 where a number is missing in its column
        if name not in names:
            raise SettingsError(did_you_mean(f"class '{name}'", name, names) if names else "this model's data have no classes")
        return names.index(name)

    def table(self, places: Sequence[tuple[int, int]], classes: Sequence[int] | None = None) -> pa.Table:
        """Draw rows as ``draw`` does, and return them in the form of the source, with its label if the model is conditional."""
        assert self.spec.is_table
        return rows.to_table(self.spec, *self.draw(places, classes))


def load(folder: Path, device: str = "cpu") -> ServedModel:
    """Load the model of a registered bundle and verify it against its manifest.

    Raises IntegrityError if a file differs from the manifest, UserError if the family cannot sample.
    """
    model = load_model(folder, device)
    if not isinstance(model, CanSample):
        raise UserError(f"{folder}: its family cannot sample: use a model of another family")
    spec = DataSpec.model_validate(json.loads((folder / MODEL).read_bytes())["spec"])
    return ServedModel(model, spec, device)
