"""Measure the Fashion-MNIST pipelines of params.yaml at 32 x 32, each within MOST_SECONDS of processor time.

    python -m benchmarks.fashion [FAMILY ...]

Needs the four files of Debian's package dataset-fashion-mnist (any copy of the IDX files: datasets.fashion.source).
Prints one line per family, writes docs/results/fashion.json and, with real images for comparison, docs/results/fashion.png:
look at it. Ends with status 1 if a family took longer.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipelines import ROOT, line, measured, prepared, write
from remint.evaluation import plots

MOST_SECONDS = 1800.0
FAMILIES = ("vae", "gan", "flow", "matching")


def main(*families: str) -> int:
    kept = ROOT / "docs/results/fashion.json"
    rows: dict[str, dict[str, Any]] = {row["pipeline"]: row for row in (json.loads(kept.read_text()) if kept.exists() else [])}
    with tempfile.TemporaryDirectory() as name:
        dataset, extractor = prepared("fashion", Path(name))
        pictures = {}
        for family in families or FAMILIES:
            pipeline = f"fashion-{family}"
            result = measured(pipeline, dataset, extractor, Path(name) / family, seed=0)
            values = {**result.evidence.report.metrics, **result.evidence.report.context}
            rows[pipeline] = {
                "pipeline": pipeline,
                "cpu_seconds": result.cpu_seconds,
                "ended": result.trained.ended,
                **{metric: value.value for metric, value in values.items()},
            }
            pictures[pipeline] = np.load(result.report / "samples.npy", allow_pickle=False)
            print(line(rows[pipeline]), flush=True)
            write("fashion", list(rows.values()))
            drawn = {f"fashion-{f}": pictures[f"fashion-{f}"] for f in families or FAMILIES if f"fashion-{f}" in pictures}
            picture = ROOT / f"docs/results/{'fashion' if not families else '-'.join(['fashion', *families])}.png"
            plots.comparison(picture, np.array(dataset.held_out.x_NX[:64]), drawn, dataset.spec.levels)
    return int(any(row["cpu_seconds"] > MOST_SECONDS for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
