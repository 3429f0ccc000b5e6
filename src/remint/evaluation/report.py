"""The report folder of one pipeline: what people, the gate, ``dvc metrics`` and ``dvc plots`` read.

report.json, values.npz    records.Evidence
metrics.json               {name: value}, context included
curve.csv, curve.png       of the training, step by step
spec.json                  records.DataSpec of the examples
samples.npy, real.npy      samples with the same noise for every model, and as many held-out examples
samples.png                images as a grid, of a conditional model a row for each class; columns of a table beside the real ones
by_class.png               the metrics by class, where there are labels
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

SHOWN = 64  # images in the picture
PER_CLASS = 8  # of a conditional model
SHOWN_ROWS = 2000  # rows of a table

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
    if report.by_class:
        plots.by_class(out / "by_class.png", report.by_class, title=f"{report.pipeline}: by class")
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
    spec = dataset.spec
    count = min(SHOWN_ROWS, len(dataset.held_out)) if spec.is_table else SHOWN
    real_NX = np.array(dataset.held_out.x_NX[:count])
    spec.write(out / "spec.json")
    np.save(out / "real.npy", real_NX, allow_pickle=False)
    model = load_model(bundle)
    if not isinstance(model, CanSample):
        return
    classes = spec.classes if model.conditional else 0
    y_N = np.repeat(np.arange(classes), PER_CLASS) if classes and not spec.is_table else None
    x_NX = samples(model, spec, count if y_N is None else len(y_N), 0, PICTURE, y_N=y_N)
    np.save(out / "samples.npy", x_NX, allow_pickle=False)
    title = f"{pipeline}: {len(x_NX)} samples"
    if spec.is_table:
        plots.table_columns(out / "samples.png", real_NX, {pipeline: x_NX}, spec.columns, title)
    elif y_N is None:
        plots.sample_grid(out / "samples.png", x_NX, spec.levels, title)
    else:
        plots.sample_grid(out / "samples.png", x_NX, spec.levels, f"{title}, a row for each class", columns=PER_CLASS)
