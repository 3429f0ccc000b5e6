"""Pictures of several pipelines' samples beside real examples, one for each dataset."""

from __future__ import annotations

import itertools
from pathlib import Path

from remint.promotion.outcome import Outcome
from remint.records import DataSpec
from remint.runtime.home import Home


def compare(home: Home, outcomes: list[Outcome]) -> list[Path]:
    """Write HOME/reports/samples-DATASET.png from the arrays in each report (real.npy, samples.npy). Return the paths.

    A pipeline whose model cannot sample is left out.
    """
    import numpy as np

    from remint.evaluation import plots

    pictures = []
    order = sorted(outcomes, key=lambda outcome: outcome.dataset_version)  # a stable sort: pipelines keep their order
    for _, group in itertools.groupby(order, key=lambda outcome: outcome.dataset_version):
        reports = {each.pipeline: (each.dataset, home.report(each.model, each.version)) for each in group}
        dataset, first = next(iter(reports.values()))
        drawn = {name: folder / "samples.npy" for name, (_, folder) in reports.items()}
        samples = {name: np.load(path, allow_pickle=False) for name, path in drawn.items() if path.exists()}
        if not samples:
            continue
        spec, real_NX = DataSpec.read(first / "spec.json"), np.load(first / "real.npy", allow_pickle=False)
        pictures.append(home.reports / f"samples-{dataset}.png")
        if spec.is_table:
            plots.table_columns(pictures[-1], real_NX, samples, spec.columns, dataset)
        else:
            plots.comparison(pictures[-1], real_NX, samples, spec.levels)
    return pictures
