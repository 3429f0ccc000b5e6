"""The loader that registered models name: ``mlflow.pyfunc.load_model("models:/digits-vae@champion")`` ends up here.

Knows no MLflow: a pyfunc model is any object with ``predict``, and its loader any module with ``_load_pyfunc``. So what
is registered holds weights and JSON and no pickled class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from remint.errors import UserError
from remint.serving.model import ServedModel, load


class Pyfunc:
    """``predict(table with an integer column "seed")`` -> one sample a row, uint8, shape (rows, C, H, W)."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
        try:
            seeds = [int(seed) for seed in model_input["seed"]]
        except (KeyError, TypeError, ValueError, IndexError):
            raise UserError('expected a table with one integer column "seed", one row a sample') from None
        return self.model.sample_each(seeds)


def _load_pyfunc(path: str) -> Pyfunc:
    return Pyfunc(load(Path(path)))
