"""Shards in use: training, evaluation, leakage and drift are the same as with one array."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from remint.data import sources, splits
from remint.data.arrays import Dataset, ShardedArray, Split, load
from remint.evaluation import drift, features, leakage, report
from remint.evaluation.evaluate import evaluate
from remint.settings.dataset import DatasetSettings
from remint.settings.judging import EvaluationSettings
from tests.support import training_cases as cases

QUICK = EvaluationSettings(samples=64, draws=2, importance_samples=4)


def sharded(dataset: Dataset) -> Dataset:
    """Return the same dataset, each array in shards of 7, 20 and the rest."""

    def divide(split: Split) -> Split:
        return replace(split, x_NX=ShardedArray(np.split(np.asarray(split.x_NX), [7, 27])))  # type: ignore[arg-type]

    held = {name: divide(getattr(dataset, name)) for name in ("train", "validation", "held_out")}
    return replace(dataset, **held)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".png"}


def test_torch_takes_shards_as_one_array() -> None:
    x_NX = np.random.default_rng(0).integers(256, size=(40, 3, 2, 2), dtype=np.uint8)
    made = torch.tensor(ShardedArray(np.split(x_NX, [3, 17])))
    assert made.dtype == torch.uint8 and torch.equal(made, torch.from_numpy(x_NX))


@pytest.mark.slow
def test_images_in_shards_give_the_same_weights_metrics_and_report(tmp_path: Path) -> None:
    dataset = cases.prepare(tmp_path)
    for name, found in (("whole", dataset), ("shards", sharded(dataset))):
        folder = tmp_path / name
        cases.train_into(cases.recipe("vae"), found, folder)
        features.fit(found, folder / "features")
        evidence = evaluate(
            folder / "out",
            found,
            folder / "features",
            QUICK,
            ["elbo", "fd_domain", "novelty", "coverage_domain", "kid_domain", "precision_domain"],
            "tiny",
        )
        report.write(evidence, folder / "out", found, folder / "report")
        former = replace(found, train=replace(found.train, x_NX=found.train.x_NX[:100], y_N=found.train.y_N[:100]))  # type: ignore[index]
        compared = drift.measure_drift(former, found, None, "")
        drift.write(compared, former, found, folder / "report")
        copied = replace(found.held_out, x_NX=np.concatenate([found.train.x_NX[3:9], found.held_out.x_NX[9:]]))
        copies = leakage.find(copied, found.train, found.spec)
        assert copies.leakage.exact >= 6
        leakage.write(copies, copied, found.train, found.spec, folder / "report")
    for part in ("out", "features", "report"):
        whole = contents(tmp_path / "whole" / part)
        assert contents(tmp_path / "shards" / part) == whole and whole


def test_rows_in_shards_have_the_same_leakage_and_drift(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    lines = [f"{x:.3f},{y:.3f},{city}" for x, y, city in zip(*g.normal(size=(2, 300)), g.choice(["a", "b"], 300), strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["x,y,city", *lines]) + "\n")
    settings = DatasetSettings(source="rows.csv", kind="table")
    sources.snapshot("rows", settings, tmp_path, tmp_path / "raw")
    splits.prepare("rows", settings, tmp_path / "raw", tmp_path / "prepared")
    whole = load(tmp_path / "prepared")
    results = []
    for found in (whole, sharded(whole)):
        former = replace(found, train=replace(found.train, x_NX=found.train.x_NX[:100]))
        compared = drift.measure_drift(former, found, None, "")
        drift.write(compared, former, found, tmp_path)
        results.append((compared, leakage.find(found.held_out, found.train, found.spec)))
    assert results[0] == results[1]
