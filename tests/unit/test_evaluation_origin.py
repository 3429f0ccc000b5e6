"""Leakage and drift between the training data of a model and its evaluation data, from prepared data on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remint.data import arrays, sources, splits
from remint.errors import IntegrityError
from remint.evaluation import features
from remint.evaluation.evidence import Evidence
from remint.evaluation.origin import Origin
from remint.records import Drift, EvaluationReport, TrainedModel
from remint.settings.dataset import DatasetSettings
from remint.settings.split import SplitSettings

Array = np.ndarray[Any, Any]


def prepared(folder: Path, x_NHW: Array, seed: int = 0) -> Path:
    folder.mkdir()
    np.savez(folder / "images.npz", x=x_NHW)
    settings = DatasetSettings(source="images.npz", levels=256, split=SplitSettings(held_out=0.3, seed=seed))
    sources.snapshot("tiny", settings, folder, folder / "raw", schemas=folder / "schemas")
    splits.prepare("tiny", settings, folder / "raw", folder / "prepared")
    return folder / "prepared"


def images(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(256, size=(count, 9, 9)).astype(np.uint8)


def bundle(folder: Path, dataset: Path) -> Path:
    """Write the only file of a trained model that is read: the one that names its training data."""
    folder.mkdir()
    data = arrays.load(dataset)
    TrainedModel(
        pipeline="p",
        dataset=data.version.digest,
        spec=data.spec,
        recipe={},
        weights_sha256="",
        steps=1,
        best_step=1,
        validation=None,
        world_size=1,
        fingerprint={},
    ).write(folder / "training.json")
    return folder


def sealed(origin: Origin) -> EvaluationReport:
    report = EvaluationReport(pipeline="p", model_key="", weights_sha256="", dataset="", metrics={})
    return origin.sealed(Evidence(report, {})).report


def test_a_near_copy_in_both_splits_is_counted_and_shown(tmp_path: Path) -> None:
    x_NHW = images(120, 0)
    start = arrays.load(prepared(tmp_path / "without", x_NHW))
    assert sealed(Origin.of(bundle(tmp_path / "b", tmp_path / "without/prepared"), start, None)).leakage is not None
    copy_NHW = np.where(x_NHW < 255, x_NHW + 1, x_NHW - 1)  # one near copy of each image; its split sometimes differs
    data = arrays.load(prepared(tmp_path / "with", np.concatenate([x_NHW, copy_NHW])))
    at_random = {x.tobytes(): split for split in ("train", "held_out") for x in getattr(data, split).x_NX}
    straddling = sum(
        {at_random.get(x.tobytes()), at_random.get(y.tobytes())} == {"train", "held_out"}
        for x, y in zip(x_NHW, copy_NHW, strict=True)
    )
    assert straddling > 10
    origin = Origin.of(bundle(tmp_path / "c", tmp_path / "with/prepared"), data, None)
    leakage = sealed(origin).leakage
    assert leakage is not None and (leakage.exact, leakage.near) == (0, straddling)
    origin.write(tmp_path / "no features are needed", tmp_path)
    assert (tmp_path / "leakage.png").exists() and not (tmp_path / "drift.json").exists()


def test_a_raised_schema_does_not_hide_what_a_champion_was_trained_on(tmp_path: Path) -> None:
    """A wrong date in the future holds out nothing else. The next schema begins anew, and holds out what was trained on."""
    generator = np.random.default_rng(0)
    lines = [f"{day // 12},{generator.normal():.3f},{generator.poisson(9)},{'ab'[day % 2]}" for day in range(600)]

    def table(version: int, *more: str) -> Path:
        (tmp_path / "t.csv").write_text("\n".join(["day,x,n,c", *more, *lines]) + "\n")
        settings = DatasetSettings(
            source="t.csv", kind="table", schema_version=version, split=SplitSettings(time="day", held_out=0.25)
        )
        raw, out = tmp_path / f"raw{version}", tmp_path / f"prepared{version}"
        sources.snapshot("tiny", settings, tmp_path, raw, schemas=tmp_path / "schemas")
        splits.prepare("tiny", settings, raw, out)
        return out

    former = table(1, *[f"{900 + day},0.5,{day},a" for day in range(200)])
    today = arrays.load(table(2, *["0,0.125,3,new", "0,0.25,4,b"]))
    held_out, train = today.held_out, arrays.load(former).train
    assert today.spec.columns != arrays.load(former).spec.columns and len(train) > 500
    found = sealed(Origin.of(bundle(tmp_path / "b", former), today, former)).leakage
    assert found is not None and found.checked == len(held_out) and found.exact + found.near > 0.8 * len(held_out)


def test_data_that_grew_are_drift_and_not_leakage(tmp_path: Path) -> None:
    before, added = images(150, 0), images(50, 1) // 2
    former = prepared(tmp_path / "former", before)
    today = arrays.load(prepared(tmp_path / "today", np.concatenate([before, added])))
    features.fit(today, tmp_path / "features")
    origin = Origin.of(bundle(tmp_path / "b", former), today, former)
    leakage = sealed(origin).leakage
    assert leakage is not None and leakage.share == 0.0 and leakage.checked == len(today.held_out)
    origin.write(tmp_path / "features", tmp_path)
    drift = Drift.read(tmp_path / "drift.json")
    assert drift.comparable and drift.removed == 0 and drift.kept == drift.before["train"]
    assert {(change.of, change.statistic) for change in drift.changed} >= {("brightness", "mean")}
    assert drift.present == today.version.digest and drift.former == arrays.load(former).version.digest
    assert not (tmp_path / "leakage.png").exists()


def test_another_split_seed_puts_training_examples_into_the_held_out_split(tmp_path: Path) -> None:
    x_NHW = images(200, 0)
    former, today = prepared(tmp_path / "former", x_NHW, seed=0), arrays.load(prepared(tmp_path / "today", x_NHW, seed=1))
    leakage = sealed(Origin.of(bundle(tmp_path / "b", former), today, former)).leakage
    trained_on = {x.tobytes() for x in arrays.load(former).train.x_NX}
    assert leakage is not None
    assert leakage.exact == sum(x.tobytes() in trained_on for x in today.held_out.x_NX) > 0.4 * leakage.checked


def test_without_the_earlier_data_leakage_is_unknown(tmp_path: Path) -> None:
    former, today = prepared(tmp_path / "former", images(60, 0)), arrays.load(prepared(tmp_path / "today", images(70, 0)))
    origin = Origin.of(bundle(tmp_path / "b", former), today, None)
    assert sealed(origin).leakage is None
    origin.write(tmp_path / "no features are needed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_that_differ_from_those_of_the_model_are_refused(tmp_path: Path) -> None:
    former, other = prepared(tmp_path / "former", images(60, 0)), prepared(tmp_path / "other", images(70, 0))
    today = arrays.load(prepared(tmp_path / "today", images(80, 0)))
    with pytest.raises(IntegrityError, match="is dataset version"):
        Origin.of(bundle(tmp_path / "b", former), today, other)


def test_images_of_another_size_are_not_comparable_and_the_step_succeeds(tmp_path: Path) -> None:
    former = prepared(tmp_path / "former", images(60, 0))
    today = arrays.load(prepared(tmp_path / "today", images(60, 0)[:, :8, :8]))
    features.fit(today, tmp_path / "features")
    origin = Origin.of(bundle(tmp_path / "b", former), today, former)
    assert sealed(origin).leakage is None
    origin.write(tmp_path / "features", tmp_path)
    assert "not comparable" in json.loads((tmp_path / "drift.json").read_text())["summary"]
