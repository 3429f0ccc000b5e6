"""Compare imputation by the VAE and the flow with that by the mean, 5 nearest neighbours and scikit-learn's IterativeImputer.

    python -m benchmarks.imputation [DATA ...]    by default all three; the results of the others are kept

digits         50% of the pixels of held-out digits are removed, by three masks; the models of digits-vae and digits-flow
breast_cancer  30% of the cells of held-out rows are removed, in three splits (those of benchmarks/tables.py)
wine           the same, with the cultivar as a column of three categories

The models are trained on complete examples. So are mean and neighbours. IterativeImputer learns nothing from complete rows; it
is fitted once to training rows with as many cells removed, and once to these together with the complete rows; the better
one counts. Categories are one-hot for the baselines. RMSE is over the removed numbers, in standard deviations or levels;
coverage is that of the 90% intervals of 20 draws. Of levels they cover more; so the share of ranks within the level stands beside
(serving/imputation/coverage.py).

Prints a table, writes docs/results/imputation.json, and names each comparison that is lost. Ends with status 1 if a coverage
is outside 85% to 95%.

Shapes: N rows, D columns.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_wine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from benchmarks import tables
from benchmarks.pipelines import ROOT, line, prepared, write
from remint.data.arrays import Dataset, Split
from remint.data.blocks import Blocks
from remint.distributed.machine import deterministic
from remint.distributed.world import World
from remint.models.contract import Model
from remint.records import Column, DatasetVersion, DataSpec
from remint.serving.imputation import coverage
from remint.serving.imputation.imputing import completions
from remint.serving.inputs import Examples
from remint.serving.model import ServedModel
from remint.settings.params import load_params
from remint.settings.recipe import FlowSettings, Recipe, TrainingSettings, VaeSettings
from remint.training import train
from remint.training.checkpoint import Checkpoints

Array = np.ndarray[Any, Any]

DATA = ("digits", "breast_cancer", "wine")
SPLITS = (0, 1, 2)
MOST = {"image": 24, "table": 64}  # held-out examples that are completed: a flow takes seconds for an image
MODELS = {
    "flow": FlowSettings(coupling="affine", couplings=8, hidden=64, dropout=0.2),
    "vae": VaeSettings(latent=12, hidden=128, layers=2, dropout=0.05, likelihood="gaussian_mixture", mixtures=1),
}
SMALL = {"flow": {"couplings": 2, "hidden": 32}, "vae": {"latent": 6, "hidden": 64, "dropout": 0.2}}  # of wine: 125 rows
TRAINING = {
    "flow": {"steps": 1500, "learning_rate": 5e-3},
    "vae": {"steps": 4000, "learning_rate": 2e-3},
}
OTHERS = {"batch_size": 64, "validate_every": 50, "checkpoint_every": 1_000_000}
BOUNDS = (0.85, 0.95)  # of a coverage
OURS, BASELINES = ("vae", "flow"), ("mean", "5 neighbours", "IterativeImputer")


def fit(recipe: Recipe, dataset: Dataset) -> ServedModel:
    with tempfile.TemporaryDirectory() as folder, deterministic(threads=1):
        checkpoints = Checkpoints(Path(folder), "imputation")
        with checkpoints.held("benchmarks/imputation.py"):
            state = train.fit(recipe, dataset, World(0, 1, torch.device("cpu")), checkpoints, lambda: False)
    model = state.served()
    assert isinstance(model, Model)
    return ServedModel(model.eval().requires_grad_(False), dataset.spec)


def table(name: str, split: int) -> Dataset:
    """Return a dataset of float32 rows."""
    if name == "breast_cancer":
        parts = list(tables.parts(name, split))
    else:
        numbers = tables.parts("wine", split)
        order_N = np.random.default_rng(split).permutation(len(load_wine().target))
        held_out, validation = len(numbers[2]), len(numbers[1])
        y_N = load_wine().target[order_N]
        of_part = (y_N[held_out + validation :], y_N[held_out : held_out + validation], y_N[:held_out])
        parts = [np.concatenate([x, y[:, None]], 1) for x, y in zip(numbers, of_part, strict=True)]
    dims = parts[0].shape[1]
    columns = [Column(name=f"{place}") for place in range(dims)]
    if name == "wine":
        columns[-1] = Column(name="cultivar", categories=("0", "1", "2"))
    spec = DataSpec(shape=(dims,), columns=tuple(columns))
    version = DatasetVersion(name=name, source=__file__, raw_sha256="", spec=spec, split={}, counts={}, files={})
    return Dataset(version, *(Split(part.astype(np.float32), None) for part in parts))


def ours(served: ServedModel, x_NX: Array, gone_NX: Array, split: int) -> dict[str, Any]:
    """Complete the examples, and compare with the removed values."""
    spec, began = served.spec, time.process_time()
    hidden_NX = np.where(gone_NX, np.nan, x_NX).astype(np.float32) if spec.is_table else x_NX
    parts = list(completions(served, Examples(Blocks.of(hidden_NX), None), gone_NX, seed=split))
    seconds = time.process_time() - began
    at = np.cumsum([0, *[len(part.x_MX) for part in parts]])
    places = [first + part.at_G for first, part in zip(at, parts, strict=False)]
    covered, ranked, width = np.zeros(x_NX.shape, bool), np.zeros(x_NX.shape), np.zeros(x_NX.shape)
    for place_G, part in zip(places, parts, strict=True):
        covered[place_G] = coverage.covers(spec, part, x_NX[place_G])
        ranked[place_G] = coverage.within_ranks(part.drawn_GDX, x_NX[place_G])
        width[place_G] = part.high_GX - part.low_GX
    number_NX = gone_NX & _numeric(spec)
    result = errors(spec, np.concatenate([part.x_MX for part in parts]), x_NX, gone_NX)
    return result | {
        "coverage": float(covered[gone_NX].mean()),
        "ranked": float(ranked[number_NX].mean()),
        "width": float(width[number_NX].mean()),
        "cpu_seconds_an_example": seconds / len(x_NX),
    }


def _numeric(spec: DataSpec) -> Array:
    return np.array([column.numeric for column in spec.columns]) if spec.is_table else np.ones(spec.shape, bool)


def errors(spec: DataSpec, filled_NX: Array, x_NX: Array, gone_NX: Array) -> dict[str, Any]:
    """Return the RMSE of the removed numbers and the share of removed categories that are wrong."""
    number_NX, category_NX = gone_NX & _numeric(spec), gone_NX & ~_numeric(spec)
    off_NX = filled_NX.astype(np.float64) - x_NX
    found = {"rmse": float(np.sqrt(np.square(off_NX[number_NX]).mean()))}
    return found | ({"wrong_categories": float((off_NX[category_NX] != 0).mean())} if category_NX.any() else {})


def one_hot(spec: DataSpec, x_ND: Array) -> Array:
    """Return rows with numbers and one-hot categories, NaN where missing."""
    if not spec.is_table:
        return x_ND
    parts = [
        np.where(np.isnan(x_N)[:, None], np.nan, x_N[:, None] == np.arange(len(column.categories)))
        if column.categories
        else x_N[:, None]
        for column, x_N in zip(spec.columns, x_ND.T, strict=True)
    ]
    return np.concatenate(parts, 1)


def decoded(spec: DataSpec, x_NP: Array) -> Array:
    """Return the rows of ``one_hot``: of each category the largest number."""
    if not spec.is_table:
        return x_NP
    widths = [max(1, len(column.categories)) for column in spec.columns]
    parts = np.split(x_NP, np.cumsum(widths)[:-1], axis=1)
    return np.stack([part.argmax(1) if part.shape[1] > 1 else part[:, 0] for part in parts], 1)


def baselines(spec: DataSpec, known_ND: Array, x_ND: Array, gone_ND: Array, share: float, split: int) -> dict[str, Array]:
    """Return the completions of each baseline, (N, D)."""
    known_NP = one_hot(spec, known_ND.astype(np.float64))
    hidden_NP = one_hot(spec, np.where(gone_ND, np.nan, x_ND.astype(np.float64)))
    some_ND = np.random.default_rng(split + 10).random(known_ND.shape) < share
    gapped_NP = one_hot(spec, np.where(some_ND, np.nan, known_ND.astype(np.float64)))
    found = {
        "mean": np.where(np.isnan(hidden_NP), known_NP.mean(0), hidden_NP),
        "5 neighbours": KNNImputer(n_neighbors=5).fit(known_NP).transform(hidden_NP),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops at its limit of rounds
        for what, rows_NP in (("gapped", gapped_NP), ("both", np.concatenate([known_NP, gapped_NP]))):
            found[f"IterativeImputer, {what}"] = IterativeImputer(random_state=0).fit(rows_NP).transform(hidden_NP)
    return {name: decoded(spec, filled_NP) for name, filled_NP in found.items()}


def rows_of(name: str, split: int, spec: DataSpec, known_NX: Array, x_NX: Array, share: float) -> tuple[list[Any], Array]:
    """Return the baselines' rows, and the mask."""
    gone_NX = coverage.remove(spec, x_NX, share, split)
    flat = [each.reshape(len(each), -1) for each in (known_NX, x_NX, gone_NX)]
    rows = []
    for what, filled_ND in baselines(spec, *flat, share, split).items():
        found = errors(spec, filled_ND.reshape(x_NX.shape), x_NX, gone_NX)
        rows.append({"data": name, "split": split, "method": what, **found})
    iterative = [row for row in rows if row["method"].startswith("IterativeImputer")]
    best = min(iterative, key=lambda row: row["rmse"])
    rows = [row for row in rows if row not in iterative] + [{**best, "method": "IterativeImputer", "fitted_to": best["method"]}]
    return rows, gone_NX


def digits(folder: Path) -> list[dict[str, Any]]:
    dataset, _ = prepared("digits", folder)
    x_NX = np.asarray(dataset.held_out.x_NX)[: MOST["image"]]
    known_NX = np.asarray(dataset.train.x_NX)
    models = {name: fit(load_params(ROOT).pipeline(f"digits-{name}").recipe, dataset) for name in OURS}
    rows = []
    for split in SPLITS:
        some, gone_NX = rows_of("digits", split, dataset.spec, known_NX, x_NX, coverage.REMOVED["image"])
        rows += some
        for name, served in models.items():
            rows.append({"data": "digits", "split": split, "method": name, **ours(served, x_NX, gone_NX, split)})
        print("\n".join(line(row) for row in rows[-5:]), flush=True)
    return rows


def of_table(name: str, split: int) -> list[dict[str, Any]]:
    dataset = table(name, split)
    known_ND = np.concatenate([dataset.train.x_NX, dataset.validation.x_NX])
    x_ND = np.asarray(dataset.held_out.x_NX)[: MOST["table"]]
    rows, gone_ND = rows_of(name, split, dataset.spec, known_ND, x_ND, coverage.REMOVED["table"])
    for family in OURS:
        training = TrainingSettings.model_validate({**OTHERS, **TRAINING[family], "seed": split})
        model = MODELS[family]
        if name == "wine":
            model = model.model_copy(update=SMALL[family])
        served = fit(Recipe(dataset=name, family=family, model=model, training=training), dataset)
        rows.append({"data": name, "split": split, "method": family, **ours(served, x_ND, gone_ND, split)})
    print("\n".join(line(row) for row in rows), flush=True)
    return rows


def verdicts(rows: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the comparisons that are lost, on the mean RMSE over the splits, and the coverages outside the bounds."""
    lost, outside = [], []
    for name in dict.fromkeys(row["data"] for row in rows):
        mean = {
            what: np.mean([row["rmse"] for row in rows if (row["data"], row["method"]) == (name, what)])
            for what in (*OURS, *BASELINES)
        }
        lost += [
            f"{name}: RMSE of {our} {mean[our]:.3f}, of {other} {mean[other]:.3f}"
            for our, other in itertools.product(OURS, BASELINES)
            if mean[our] >= mean[other]
        ]
        for our in OURS:
            found = np.mean([row["coverage"] for row in rows if (row["data"], row["method"]) == (name, our)])
            outside += [] if BOUNDS[0] <= found <= BOUNDS[1] else [f"{name}: the intervals of {our} cover {found:.3f}"]
    return lost, outside


def main(*names: str) -> int:
    os.environ["REMINT_EVENTS"] = os.devnull  # a table is printed, not progress
    names = names or DATA
    rows = [row for name, split in itertools.product(names, SPLITS) if name != "digits" for row in of_table(name, split)]
    if "digits" in names:
        with tempfile.TemporaryDirectory() as folder:
            rows += digits(Path(folder))
    written = ROOT / "docs/results/imputation.json"
    rows += [row for row in (json.loads(written.read_text()) if written.exists() else []) if row["data"] not in names]
    rows.sort(key=lambda row: DATA.index(row["data"]))
    print(f"written: {write('imputation', rows)}")
    lost, outside = verdicts(rows)
    print("\n".join(f"LOST  {each}" for each in lost) or "no comparison is lost")
    print("\n".join(f"MISSED  {each}" for each in outside) or "every coverage is within its bounds")
    return int(bool(outside))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
