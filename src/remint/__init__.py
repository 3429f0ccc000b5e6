"""remint retrains generative models on schedule and promotes only what is shown to be better.

import remint
model = remint.load("digits-vae@champion")    # remint.serving.model.ServedModel
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remint.serving.model import ServedModel


def load(ref: str | Path, device: str = "cpu", repository: str | Path = ".") -> ServedModel:
    """Return the served model of a name, a version, a bundle's folder or a published model's address: see remint.serving.load."""
    # Late, because torch and mlflow take seconds to import; by name, because every step imports this file and does not use it.
    served: ServedModel = importlib.import_module("remint.serving.load").load(ref, device, repository)
    return served
