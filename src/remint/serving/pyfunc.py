"""MLflow's loader for a registered bundle: ``mlflow.pyfunc.load_model("models:/digits-vae@champion")``.

MLflow imports this module by name and calls ``_load_pyfunc``. No class of remint is pickled, and the model contains no code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from remint.serving.model import ServedModel, load


class Sampler:
    """The object whose ``predict`` MLflow calls."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served

    def predict(self, rows: Mapping[str, Iterable[int]], params: dict[str, Any] | None = None) -> Any:
        """Return one sample per row of a DataFrame: the first of the series of the row's ``seed``, of its ``class`` if given.

        Images: x_NX, uint8. A table: a DataFrame in the form of the source.
        """
        classes = [self.served.class_named(str(name)) for name in rows["class"]] if "class" in rows else None
        places = [(int(seed), 0) for seed in rows["seed"]]
        return self.served.in_source_form(*self.served.draw(places, classes))


def _load_pyfunc(path: str) -> Sampler:
    """Load a bundle for MLflow. Raises IntegrityError if a file of the bundle differs from its manifest."""
    return Sampler(load(Path(path)))
