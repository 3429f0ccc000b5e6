"""Cases for the gate: a small table, flows trained on it, and generators with known defects, judged as a flow run does."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from remint.data import arrays, sources, splits
from remint.data.arrays import Dataset
from remint.errors import RemintError
from remint.evaluation import evaluate, features
from remint.evaluation.evidence import Evidence
from remint.evaluation.origin import Origin
from remint.models.contract import Model
from remint.promotion import gate
from remint.records import TrainedModel
from remint.runtime import manifest
from remint.settings.dataset import DatasetSettings
from remint.settings.judging import EvaluationSettings, PromotionSettings
from remint.settings.plugins import settings_of
from remint.settings.recipe import Recipe, TrainingSettings
from remint.training import train

ROWS = 1200
COLUMNS = ("a", "b", "c", "d")
SETTINGS = DatasetSettings(source="rows.csv", kind="table")
SAMPLE_METRICS = ["fd_domain", "coverage_domain", "novelty"]
METRICS = ["nll", *SAMPLE_METRICS]
# Chosen as for digits in params.yaml: a likelihood that independent columns do not reach, three times the distance between
# two sets of real rows, coverage of most real rows, and no copies.
REQUIRE = {"fd_domain": {"max": 0.6}, "coverage_domain": {"min": 0.75}, "novelty": {"min": 0.8}}
RULES = {"require": {"nll": {"max": 5.2}, **REQUIRE}, "improve": {"metric": "fd_domain"}}
FLOW = {"couplings": 3, "hidden": 32, "bins": 6, "tails": "linear", "dropout": 0.0}
TRAINING = {"steps": 300, "batch_size": 128, "learning_rate": 5e-3, "ema": 0.98, "validate_every": 100, "checkpoint_every": 300}


@dataclass(frozen=True)
class TrainedFlow:
    """One trained flow, its data and their features."""

    dataset: Dataset
    features: Path
    bundle: Path


def write_table(path: Path, seed: int, rows: int = ROWS) -> None:
    """Write a table: two clusters in ``a``, ``b`` linear in ``a``, ``c`` normal, and ``d`` quadratic in ``c``."""
    dice = np.random.default_rng(seed)
    n_ND = dice.normal(size=(rows, 4))
    a_N = np.where(dice.random(rows) < 0.5, -2.0, 2.0) + 0.7 * n_ND[:, 0]
    table = np.stack([a_N, 0.6 * a_N + 0.5 * n_ND[:, 1], n_ND[:, 2], 0.8 * n_ND[:, 2] ** 2 + 0.4 * n_ND[:, 3]], axis=1)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(table.tolist())


def prepare(folder: Path, settings: DatasetSettings = SETTINGS) -> Dataset:
    """Prepare rows.csv as the steps do, and keep the schema as a home does."""
    sources.snapshot("rows", settings, folder, folder / "raw", schemas=folder / "schemas")
    splits.prepare("rows", settings, folder / "raw", folder / "prepared")
    return arrays.load(folder / "prepared")


def train_flow(folder: Path, seed: int) -> TrainedFlow:
    """Make everything from the table to a bundle, as the steps do."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "rows.csv", seed)
    dataset = prepare(folder)
    features.fit(dataset, folder / "features")
    recipe = Recipe(
        dataset="rows",
        family="flow",
        model=settings_of("flow").model_validate(FLOW),
        training=TrainingSettings.model_validate(TRAINING | {"seed": seed % 1000}),
    )
    train.train_pipeline(
        recipe, "rows", dataset, checkpoints=folder / "checkpoints", out=folder / "out", code_sha256="c0de", command=[]
    )
    return TrainedFlow(dataset, folder / "features", folder / "out")


class Generator(Model):
    """Generator without a likelihood: ``draw`` computes samples from a flow's noise and its sampling function."""

    def __init__(self, flow: Any, draw: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> None:
        super().__init__()
        self.flow, self.draw, self.sample_noise = flow, draw, flow.sample_noise

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        return self.draw(noise_BN, self.flow.sample)


def evaluate_flow(
    trained: TrainedFlow, folder: Path, *, generator: Callable[[Any], Model] | None = None, dataset: Dataset | None = None
) -> Evidence:
    """Evaluate as the step does, save the evidence and load it. ``generator``: evaluated in place of the flow."""
    metrics, real = SAMPLE_METRICS if generator else METRICS, evaluate.load_model
    judged_on = dataset or trained.dataset
    settings = EvaluationSettings(samples=220, draws=8)
    with pytest.MonkeyPatch.context() as patch:
        if generator:
            patch.setattr(evaluate, "load_model", lambda bundle: generator(real(bundle)).eval())
        found = evaluate.evaluate(trained.bundle, judged_on, trained.features, settings, metrics, "rows")
    Origin.of(trained.bundle, judged_on, None).sealed(found).save(folder)
    return Evidence.load(folder)


def gate_verdict(make: Callable[[], Evidence], champion: Evidence | None, *, samples_only: bool = False, **more: Any) -> str:
    """Return the gate's verdict, or the name of the error class that ended the run before the gate."""
    rules = PromotionSettings.model_validate({**RULES, "require": REQUIRE} if samples_only else RULES)
    try:
        challenger = make()
    except RemintError as error:
        return type(error).__name__
    return gate.decide("rows", challenger, 2, champion, None if champion is None else 1, rules, **more).verdict


def with_nonfinite_weight(trained: TrainedFlow, to: Path, dice: np.random.Generator) -> TrainedFlow:
    """Copy the bundle with one weight set to NaN or infinity, sealed and recorded as if trained so."""
    shutil.copytree(trained.bundle, to)
    weights = load_file(to / "weights.safetensors")
    name = str(dice.choice(sorted(name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.numel())))
    flat = weights[name].flatten()
    flat[int(dice.integers(len(flat)))] = float(dice.choice([np.nan, np.inf, -np.inf]))
    weights[name] = flat.reshape(weights[name].shape)
    save_file(weights, to / "weights.safetensors")
    record = TrainedModel.read(to / "training.json")
    sha256 = manifest.sha256_file(to / "weights.safetensors")
    record.model_copy(update={"weights_sha256": sha256}).write(to / "training.json")
    manifest.seal(to)
    return TrainedFlow(trained.dataset, trained.features, to)
