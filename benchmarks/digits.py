"""Measure the digits pipelines of params.yaml on held-out digits, three seeds each, and check their bounds.

    python benchmarks/digits.py [SEED ...]

flow            bits/dim of the exact likelihood, at most 1.93
flow matching   bits/dim, at most 1.97; Frechet distance relative to that of real images (the floor), at most 1.3
VAE             bits/dim of IWAE-1000, at most 1.88
GAN             Frechet distance relative to the floor, at most 2; novelty, the mean distance of a sample to the nearest
                training image relative to that of held-out images, at least 0.9, which excludes memorising

Each trains within 180 seconds of processor time. Prints a table, writes docs/results/digits.json and digits.png, and ends
with status 1 if a bound is missed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipelines import ROOT, Result, line, measured, prepared, write
from remint.evaluation import plots
from remint.settings.params import load_params

BOUNDS = {  # by pipeline
    "digits-flow": {"nll": 1.93},
    "digits-matching": {"nll": 1.97, "over_floor": 1.3},
    "digits-vae": {"iwae": 1.88},
    "digits-gan": {"over_floor": 2.0},
}
MOST_SECONDS = 180.0
LEAST_NOVELTY = 0.9


def main(*seeds: str) -> int:
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        dataset, extractor = prepared("digits", Path(name))
        for pipeline in BOUNDS:
            metrics = list(dict.fromkeys([*load_params(ROOT).pipeline(pipeline).metrics(), "novelty"]))
            for seed in seeds or ("0", "1", "2"):
                folder = Path(name) / f"{pipeline}-{seed}"
                result = measured(pipeline, dataset, extractor, folder, int(seed), metrics=metrics, importance_samples=1000)
                rows.append(_row(result))
                pictures.setdefault(pipeline, np.load(folder / "report/samples.npy", allow_pickle=False))
                print(line(rows[-1]), flush=True)
        plots.comparison(ROOT / "docs/results/digits.png", np.array(dataset.held_out.x_NX[:64]), pictures, dataset.spec.levels)
    print(f"written: {write('digits', rows)}")
    missed = [f"{row['pipeline']} seed {row['seed']}: {miss}" for row in rows for miss in _missed(row)]
    print("\n".join(f"MISSED  {miss}" for miss in missed) or "every bound is held")
    return int(bool(missed))


def _row(result: Result) -> dict[str, Any]:
    return {
        "pipeline": result.pipeline,
        "seed": result.seed,
        "cpu_seconds": result.cpu_seconds,
        **{name: value.value for name, value in result.evidence.report.metrics.items()},
        "over_floor": result.value("fd_domain") / result.value("fd_domain_floor"),
    }


def _missed(row: dict[str, Any]) -> list[str]:
    bounds = BOUNDS[row["pipeline"]]
    missed = [f"{key} {row[key]:.3f} above {bound}" for key, bound in bounds.items() if row[key] > bound]
    if row["pipeline"] == "digits-gan" and row["novelty"] < LEAST_NOVELTY:
        missed.append(f"novelty {row['novelty']:.3f} below {LEAST_NOVELTY}")
    if row["cpu_seconds"] > MOST_SECONDS:
        missed.append(f"{row['cpu_seconds']:.0f} s of processor time")
    return missed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
