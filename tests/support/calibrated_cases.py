"""Served models of every family with a calibration, untrained."""

from __future__ import annotations

from remint.data.arrays import Dataset, Split
from remint.records import DatasetVersion
from remint.serving.anomalies import calibration
from remint.serving.model import ServedModel
from tests.support.models_cases import Case, examples, labels


def split_of(case: Case, count: int, seed: int) -> Split:
    y_N = labels(case.spec, count, seed)
    return Split(examples(case.spec, count, seed).numpy(), None if y_N is None else y_N.numpy())


def dataset_of(case: Case, calibrated: int = 40) -> Dataset:
    counts = {"train": 90, "validation": 30, "held_out": 20, "calibration": calibrated}
    version = DatasetVersion(name="d", source="s", raw_sha256="", spec=case.spec, split={}, counts=counts, files={})
    splits = [split_of(case, count, seed) for seed, count in enumerate(counts.values(), start=1)]
    return Dataset(version, *splits)


def calibrated_model(case: Case, calibrated: int = 40) -> ServedModel:
    model = case.build().float().requires_grad_(False)
    made = calibration.measure(model, "key", dataset_of(case, calibrated))
    return ServedModel(model, case.spec, ref="m/1", calibration=lambda: made)
