"""The report folder of one pipeline: what people, the gate, ``dvc metrics`` and ``dvc plots`` read.

report.json, values.npz    records.Evidence
metrics.json               {name: value}, context included
curve.csv, curve.png       of the training, step by step
samples.npy, real.npy      uint8 (N, C, H, W): samples with the same noise for every model, and as many held-out images
samples.png                the samples as a grid
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from remint.data.arrays import Dataset
from remint.evaluation import plots
from remint.evaluation.bench import PICTURE, samples
from remint.models.bundle import load_model
from remint.models.contract import CanSample
from remint.records import Evidence, TrainedModel

SHOWN = 64  # samples in the picture

Array = np.ndarray[Any, Any]


def write(evidence: Evidence, bundle: Path, dataset: Dataset, out: Path) -> None:
    """Writes the report of the model of ``bundle`` to ``out``, which is emptied first."""
    report = evidence.report
    shutil.rmtree(out, ignore_errors=True)
    evidence.save(out)
    values = {name: value.value for name, value in {**report.metrics, **report.context}.items()}
    (out / "metrics.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    shutil.copyfile(bundle / "curve.csv", out / "curve.csv")
    curve = read_curve(bundle / "curve.csv")
    trained = TrainedModel.read(bundle / "training.json")
    if curve["step"]:
        plots.training_curve(out / "curve.png", curve, trained.best_step, title=f"{report.pipeline}: training")
    _write_samples(bundle, dataset, out, report.pipeline)


def read_curve(path: Path) -> dict[str, list[float]]:
    """The columns of a curve.csv by name; an empty field is NaN."""
    with path.open(newline="") as stream:
        rows = csv.DictReader(stream)
        curve: dict[str, list[float]] = {name: [] for name in rows.fieldnames or ["step"]}
        for row in rows:
            for name, column in curve.items():
                column.append(float(row[name]) if row[name] else math.nan)
    return curve


@torch.no_grad()
def _write_samples(bundle: Path, dataset: Dataset, out: Path, pipeline: str) -> None:
    """A model that cannot sample has no picture. Every model and every version is shown with the same noise."""
    np.save(out / "real.npy", np.array(dataset.held_out.x_NX[:SHOWN]), allow_pickle=False)
    model = load_model(bundle)
    if isinstance(model, CanSample):
        x_NCHW = samples(model, dataset.spec, SHOWN, 0, PICTURE)
        np.save(out / "samples.npy", x_NCHW, allow_pickle=False)
        plots.sample_grid(out / "samples.png", x_NCHW, dataset.spec.levels, title=f"{pipeline}: {SHOWN} samples")
