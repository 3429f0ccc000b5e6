"""MLflow's loader for a registered bundle: ``mlflow.pyfunc.load_model("models:/digits-vae@champion")``.

MLflow imports this module by name and calls ``_load_pyfunc``. No class of remint is pickled, and the model contains no code.

A DataFrame has, all optional, the columns ``seed`` and ``class`` of a sample, and the examples: ``x`` with an image in each cell
(an array or nested lists, C x H x W), or the table's own columns. ``params`` has the method and its options:

    predict(DataFrame({"seed": range(64)}))                               one sample for each row
    predict(rows, params={"method": "log_prob"})                          any method in OPTIONS
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from remint.errors import SettingsError
from remint.records import TrainedModel
from remint.serving.anomalies import calibration
from remint.serving.model import ServedModel, load
from remint.settings.base import did_you_mean
from remint.stores.mlflow.package import PARAMETERS

SAMPLE = "sample"
OPTIONS: dict[str, tuple[str, ...]] = {  # parameters of each method, of which a request may name any
    SAMPLE: ("seed", "temperature"),
    "log_prob": ("seed", "draws"),
    "encode": (),
    "reconstruct": (),
    "impute": ("seed", "draws"),
    "score": ("seed", "false_alarm_rate", "fdr"),
}
AS_RESULT: dict[str, Callable[[Any], Any]] = {
    "log_prob": lambda found: found.values,
    "impute": lambda found: found.filled,
    "score": lambda found: found.to_pandas(),
}


class Predictor:
    """The object whose ``predict`` MLflow calls."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served

    def predict(self, rows: Any, params: dict[str, Any] | None = None) -> Any:
        """Return the result of ``params["method"]``, by default ``sample``, for the rows of a DataFrame.

        Images: x_NX, uint8. A table: a DataFrame in the form of the source. Raises SettingsError for an unknown method, and
        UserError if the family does not have it.
        """
        given = {**{name: default for name, (_, default) in PARAMETERS.items()}, **(params or {})}
        method = given["method"]
        if method not in OPTIONS:
            raise SettingsError(f"params: {did_you_mean(f'method {method!r}', str(method), list(OPTIONS))}")
        options = {name: given[name] for name in OPTIONS[method] if given[name] is not None}
        if method == SAMPLE:
            return self._sample(rows, **options)
        found = getattr(self.served, method)(self._examples(rows), **self._classes(rows), **options)
        return AS_RESULT.get(method, lambda result: result)(found)

    def _sample(self, rows: Any, seed: int, temperature: float) -> Any:
        """Return one sample per row: the first of the series of its ``seed``; without seeds those of one series."""
        own = {column.name for column in self.served.spec.columns}
        classes = None
        if "class" in rows and "class" not in own:
            classes = [self.served.class_named(str(name)) for name in rows["class"]]
        seeds = "seed" in rows and "seed" not in own
        places = [(int(each), 0) for each in rows["seed"]] if seeds else [(seed, index) for index in range(len(rows))]
        return self.served.in_source_form(*self.served.draw(places, classes, temperature))

    def _examples(self, rows: Any) -> Any:
        if self.served.spec.is_table:
            return rows
        if "x" not in rows:
            raise SettingsError("the input has no column x: give an image (C x H x W) in each of its cells")
        return np.stack([np.asarray(cell) for cell in rows["x"]])

    def _classes(self, rows: Any) -> dict[str, Any]:
        """Return the classes of images; those of rows are in the label's column."""
        given = self.served.conditional and not self.served.spec.is_table and "class" in rows
        return {"of_class": [str(name) for name in rows["class"]]} if given else {}


def _load_pyfunc(path: str) -> Predictor:
    """Load a bundle for MLflow. Raises IntegrityError if a file of the bundle differs from its manifest."""
    served, beside = load(Path(path)), Path(path).with_name("calibration")
    if beside.is_dir():
        key = TrainedModel.read(Path(path) / "training.json").key
        served = replace(served, calibration=cache(partial(calibration.read, beside, key)))
    return Predictor(served)
