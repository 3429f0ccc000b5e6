"""Shared code of the benchmarks: train and measure a pipeline of params.yaml in this process, without flow and registry."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from remint.data import arrays, sources, splits
from remint.data.arrays import Dataset
from remint.evaluation import drawing, evaluate, features, report
from remint.evaluation.evidence import Evidence
from remint.records import TrainedModel
from remint.settings.params import PipelineSettings, load_params
from remint.settings.recipe import Recipe
from remint.training import train

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Result:
    """One training with its evaluation."""

    pipeline: str
    seed: int
    cpu_seconds: float  # of the training, all threads
    trained: TrainedModel
    evidence: Evidence
    report: Path  # folder with the pictures and samples.npy

    def value(self, metric: str) -> float:
        found = self.evidence.report
        return {**found.metrics, **found.context}[metric].value


def prepared(name: str, folder: Path, **split: Any) -> tuple[Dataset, Path]:
    """Prepare dataset ``name`` of params.yaml below ``folder``, as the steps do. Return it and the folder of its features.

    ``split`` changes this block.
    """
    os.environ["REMINT_EVENTS"] = os.devnull  # these scripts print tables, not progress
    os.environ.setdefault("REMINT_HOME", str(folder / "home"))
    settings = load_params(ROOT).dataset(name)
    settings = settings.model_copy(update={"split": settings.split.model_copy(update=split)})
    sources.snapshot(name, settings, ROOT, folder / "raw")
    splits.prepare(name, settings, folder / "raw", folder / "prepared")
    dataset = arrays.load(folder / "prepared")
    features.fit(dataset, folder / "features")
    return dataset, folder / "features"


def train_into(out: Path, recipe: Recipe, pipeline: str, dataset: Dataset) -> TrainedModel:
    """Train into ``out``, with checkpoints in a folder beside it."""
    checkpoints = out.with_name(f"{out.name}-checkpoints")
    made = train.train_pipeline(recipe, pipeline, dataset, checkpoints=checkpoints, out=out, code_sha256="benchmark", command=[])
    assert made is not None, "one process trains"
    return made


def measured(
    pipeline: str,
    dataset: Dataset,
    extractor: Path,
    folder: Path,
    seed: int,
    training: Mapping[str, Any] | None = None,
    **evaluation: Any,
) -> Result:
    """Train the pipeline of params.yaml with ``seed`` into ``folder`` and measure it.

    ``training`` and ``evaluation`` change these blocks.
    """
    settings = _changed(load_params(ROOT).pipeline(pipeline), {**(training or {}), "seed": seed}, evaluation)
    began = time.process_time()
    trained = train_into(folder / "trained", settings.recipe, pipeline, dataset)
    cpu_seconds = time.process_time() - began
    evidence = evaluate.evaluate(folder / "trained", dataset, extractor, settings.evaluation, settings.metrics(), pipeline)
    report.write(evidence, folder / "trained", dataset, folder / "report")
    return Result(pipeline, seed, cpu_seconds, trained, evidence, folder / "report")


def _changed(settings: PipelineSettings, training: dict[str, Any], evaluation: dict[str, Any]) -> PipelineSettings:
    return settings.model_copy(
        update={
            "training": settings.training.model_copy(update=training),
            "evaluation": settings.evaluation.model_copy(update=evaluation),
        }
    )


def save_figure(figure: Figure, path: Path, grid: Literal["x", "y"] = "x") -> None:
    """Write a figure in the style of the results. ``grid``: the axis with lines across the panels."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=drawing.INK, labelsize=drawing.SMALL)
        axes.grid(visible=True, axis=grid, color="#e4e7eb", lw=0.6)
    figure.savefig(path, metadata={"Software": None}, facecolor="white", bbox_inches="tight")


def line(row: dict[str, Any]) -> str:
    """Return a row of numbers as one line."""
    return "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items())


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write the numbers to docs/results/NAME.json. Return the path."""
    path = ROOT / "docs/results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    return path
