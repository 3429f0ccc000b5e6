"""Input of the report page: records, arrays and pictures of one decision. The page uses nothing else.

Shapes: N examples, M held-out examples, X the axes of one example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from remint.promotion.decision import Decision
from remint.records import DataSpec, Drift, EvaluationReport, TrainedModel
from remint.settings.judging import PromotionSettings
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Side:
    """One model, measured on the challenger's data: the content of its report folder (evaluation/report.py)."""

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
    """One decision, with everything that a person needs to check it."""

    decision: Decision
    rules: PromotionSettings
    row: LedgerRow
    spec: DataSpec
    real_NX: Array  # held-out examples, shown beside the samples
    challenger: Side
    champion: Side | None = None  # None: no champion, or it could not be measured on this data
    champion_version: ModelVersion | None = None  # the champion's entry in the registry, measured or not
    drift: Drift | None = None  # None: the champion was trained on the same data, or there is no champion
    read_as: Mapping[str, str] = field(default_factory=dict)  # decisions of the first import: column or subject -> decision
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # PNG files by name: curves, likelihood, columns


def _arrays(path: Path) -> dict[str, Array] | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
