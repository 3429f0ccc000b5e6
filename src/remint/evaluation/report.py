"""Report folder of one pipeline, for people, the gate, ``dvc metrics`` and ``dvc plots``.

report.json, values.npz    evidence.Evidence
metrics.json               {name: value}, including the baselines
curve.csv, curve.png       training curve
spec.json                  records.DataSpec of the examples
training.json              records.TrainedModel
samples.npy, real.npy      samples with the same noise for every model, and equally many held-out examples
samples.png                images: a grid, with a row per class if conditional; tables: histograms of real and sampled columns
likelihood.png             histogram of the likelihood of held-out examples, if the model has one
nearest.npz, nearest.png   the training examples nearest to samples (evaluation/exhibits.py); a PNG only for images
failures.npz, failures.png the held-out examples that the model fails; a PNG only for images
by_class.png               the metrics by class, if there are labels
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
from remint.evaluation import exhibits, plots
from remint.evaluation.context import PICTURE, samples
from remint.evaluation.evaluate import load
from remint.evaluation.evidence import Evidence
from remint.models.contract import CanSample
from remint.records import TrainedModel

SHOWN = 64  # images in samples.png
PER_CLASS = 8  # images per class of a conditional model
SHOWN_ROWS = 2000  # rows of a table

Array = np.ndarray[Any, Any]


def write(evidence: Evidence, bundle: Path, dataset: Dataset, out: Path, part: TrainedModel | None = None) -> None:
    """Write the report of the model of ``bundle`` to ``out``, which is emptied first. ``part``: as in evaluate.evaluate."""
    report = evidence.report
    shutil.rmtree(out, ignore_errors=True)
    evidence.save(out)
    values = {name: value.value for name, value in {**report.metrics, **report.context}.items()}
    (out / "metrics.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    for name in ("curve.csv", "training.json"):
        shutil.copyfile(bundle / name, out / name)
    curve = read_curve(bundle / "curve.csv")
    trained = TrainedModel.read(bundle / "training.json")
    if curve["step"]:
        plots.training_curve(out / "curve.png", curve, trained.best_step, title=f"{report.pipeline}: training")
    if report.by_class:
        plots.by_class(out / "by_class.png", report.by_class, title=f"{report.pipeline}: by class")
    likelihood = next((name for name in exhibits.LIKELIHOODS if name in report.metrics), None)
    if likelihood is not None:
        measured = report.metrics[likelihood]
        plots.likelihoods(out / "likelihood.png", measured, {report.pipeline: np.asarray(evidence.values[likelihood])})
    model = load(bundle, dataset, part)
    dataset.spec.write(out / "spec.json")
    _write_failures(evidence, model, dataset, out)
    if isinstance(model, CanSample):
        _write_samples(model, dataset, out, report.pipeline)
    else:
        np.save(out / "real.npy", _real(dataset, None), allow_pickle=False)


def read_curve(path: Path) -> dict[str, list[float]]:
    """Return the columns of a curve.csv by name; an empty field is NaN."""
    with path.open(newline="") as stream:
        rows = csv.DictReader(stream)
        curve: dict[str, list[float]] = {name: [] for name in rows.fieldnames or ["step"]}
        for row in rows:
            for name, column in curve.items():
                column.append(float(row[name]) if row[name] else math.nan)
    return curve


@torch.no_grad()
def _write_samples(model: CanSample, dataset: Dataset, out: Path, pipeline: str) -> None:
    """Write samples, real examples and the nearest training examples, with the same noise for every version."""
    spec = dataset.spec
    classes = spec.classes if getattr(model, "conditional", False) else 0
    y_N = np.repeat(np.arange(classes), PER_CLASS) if classes and not spec.is_table else None
    real_NX = _real(dataset, y_N)
    count = len(real_NX) if spec.is_table else SHOWN if y_N is None else len(y_N)
    x_NX = samples(model, spec, count, 0, PICTURE, y_N=y_N)
    np.save(out / "real.npy", real_NX, allow_pickle=False)
    np.save(out / "samples.npy", x_NX, allow_pickle=False)
    nearest = exhibits.nearest(x_NX, dataset)
    np.savez(out / "nearest.npz", allow_pickle=False, **nearest)
    title = f"{pipeline}: {len(x_NX)} samples"
    if spec.is_table:
        plots.table_columns(out / "samples.png", real_NX, {pipeline: x_NX}, spec.columns, title)
        return
    plots.neighbours(out / "nearest.png", x_NX, nearest["near_NX"], nearest["distance_N"], spec.levels)
    if y_N is None:
        plots.sample_grid(out / "samples.png", x_NX, spec.levels, title)
    else:
        plots.sample_grid(out / "samples.png", x_NX, spec.levels, f"{title}, a row for each class", columns=PER_CLASS)


def _real(dataset: Dataset, y_N: Array | None) -> Array:
    """Return the first held-out examples; in the order of the classes ``y_N`` if there are enough of each."""
    held_out = dataset.held_out
    if y_N is not None and held_out.y_N is not None:
        label_N = np.array(held_out.y_N)
        places = [np.flatnonzero(label_N == y)[:PER_CLASS] for y in np.unique(y_N)]
        if all(len(found) == PER_CLASS for found in places):
            return np.array(held_out.x_NX[np.concatenate(places)])
    return np.array(held_out.x_NX[: SHOWN_ROWS if dataset.spec.is_table else SHOWN])


@torch.no_grad()
def _write_failures(evidence: Evidence, model: object, dataset: Dataset, out: Path) -> None:
    seed = next((value.seed for value in evidence.report.metrics.values()), 0)  # one evaluation has one seed
    failed = exhibits.failures(evidence.values, model, dataset, seed)
    if failed is None:
        return
    np.savez(out / "failures.npz", allow_pickle=False, **failed)
    if not dataset.spec.is_table:
        title = f"{evidence.report.pipeline}: held-out examples with the worst {failed['metric']}"
        plots.sample_grid(out / "failures.png", failed["x_NX"], dataset.spec.levels, title, columns=8)
