"""One picture of several pipelines' samples beside real examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from remint.home import Home


def compare(home: Home, outcomes: list[dict[str, Any]]) -> Path:
    """Writes HOME/reports/samples.png from the pictures' own arrays, which each report keeps (real.npy, samples.npy)."""
    import numpy as np

    from remint.evaluation import plots

    reports = {o["pipeline"]: home.report(o["model"], o["version"]) for o in outcomes}
    first = next(iter(reports.values()))
    samples = {name: np.load(folder / "samples.npy", allow_pickle=False) for name, folder in reports.items()}
    real_NCHW = np.load(first / "real.npy", allow_pickle=False)
    path = home.reports / "samples.png"
    plots.comparison(path, real_NCHW, samples, outcomes[0]["levels"])
    return path
