"""What the report page is made from: records, arrays and pictures of one decision. The page knows nothing else.

Shapes: N examples, M held-out examples, X the axes of one example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from remint.promotion.decision import Decision
from remint.records import DataSpec, Drift, EvaluationReport, LedgerRow, TrainedModel
from remint.settings.judging import PromotionSettings
from remint.stores.mlflow import ModelVersion

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Side:
    """One model as it was measured on the challenger's data: what its report folder holds (evaluation/report.py)."""

    version: ModelVersion
    report: EvaluationReport
    values: Arrays  # by metric: one value an example, or one a draw
    trained: TrainedModel
    samples_NX: Array | None = None  # None: it cannot sample
    nearest: Arrays | None = None
    failures: Arrays | None = None

    @classmethod
    def read(cls, version: ModelVersion, folder: Path) -> Side:
        drawn = folder / "samples.npy"
        return cls(
            version,
            EvaluationReport.read(folder / "report.json"),
            _arrays(folder / "values.npz") or {},
            TrainedModel.read(folder / "training.json"),
            np.load(drawn, allow_pickle=False) if drawn.exists() else None,
            _arrays(folder / "nearest.npz"),
            _arrays(folder / "failures.npz"),
        )


@dataclass(frozen=True)
class Story:
    """One decision, and all that a person needs to agree with it or not."""

    decision: Decision
    rules: PromotionSettings
    row: LedgerRow
    spec: DataSpec
    real_NX: Array  # held-out examples, to be held beside the samples
    challenger: Side
    champion: Side | None = None  # None: there is none, or it could not be measured on this data
    holder: ModelVersion | None = None  # the champion's entry in the registry, measured or not
    drift: Drift | None = None  # None: the data are those that the champion was trained on, or there is no champion
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # PNG files by name: curves, likelihood, columns


def _arrays(path: Path) -> dict[str, Array] | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
