"""Scores of held-out examples and of labelled anomalies, for the metrics of evaluation/anomalies.py.

Pipelines without these metrics do not depend on the code of this module.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from remint.data.arrays import Dataset
from remint.errors import DataError, IntegrityError
from remint.evaluation.context import AnomalyScores
from remint.models.contract import Model
from remint.models.scores import DEFAULT, Scorer
from remint.runtime.manifest import sha256_file
from remint.serving import inputs
from remint.serving.anomalies.calibration import fit_reference, part_scores
from remint.settings.judging import LabelledAnomalies

Array = np.ndarray[Any, Any]


def scores_of(dataset: Dataset, anomalies: LabelledAnomalies, pipeline: str) -> AnomalyScores:
    """Return a function that scores held-out examples, at some places, and the anomalies.

    Raises DataError if the file is missing, IntegrityError if it is not the one of the settings.
    """
    where = f"params.yaml: pipelines.{pipeline}.evaluation.anomalies.source: {anomalies.source}"
    places = [root / Path(anomalies.source).expanduser() for root in (Path.cwd(), Path(os.environ.get("REMINT_SOURCES", ".")))]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DataError(f"{where}: the file does not exist: put it there or correct the path")
    found = sha256_file(path)
    if found != anomalies.sha256:
        raise IntegrityError(f"{where}: its SHA-256 is {found}, expected {anomalies.sha256}: correct the file, or sha256")

    def scores(model: object, judged: Array) -> tuple[Array, Array]:
        assert isinstance(model, Model)
        if model.conditional and not hasattr(model, "labels"):  # evaluation/translation.py
            raise DataError(f"{where}: a conditional model of another schema has no anomaly scores")
        scorer = Scorer(model, dataset.spec, fit_reference(model, dataset.spec, dataset.train, dataset.validation))
        with inputs.read(dataset.spec, path, labels=False) as examples:
            parts = [
                part_scores(scorer, np.asarray(dataset.held_out.x_NX[judged]), scorer.needs(DEFAULT)),
                part_scores(scorer, examples.x_NX, scorer.needs(DEFAULT)),
            ]
        normal_N, other_M = (scorer.score(DEFAULT, part).numpy() for part in parts)
        return normal_N, other_M

    return scores
