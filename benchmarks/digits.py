"""Measure the digits pipelines of params.yaml on held-out digits, three seeds each, and check their bounds.

    python benchmarks/digits.py [SEED ...]

flow   bits/dim of the exact likelihood, at most 1.93
VAE    bits/dim of IWAE-1000, at most 1.88
GAN    Frechet distance relative to that of real images (the floor), at most 2; novelty, the mean distance of a sample to
       the nearest training image relative to that of held-out images, at least 0.9, which excludes memorising

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

PIPELINES = ("digits-flow", "digits-vae", "digits-gan")
MOST_SECONDS = 180.0
BOUNDS = {"nll": 1.93, "iwae": 1.88, "over_floor": 2.0}
LEAST_NOVELTY = 0.9


def main(*seeds: str) -> int:
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        dataset, extractor = prepared("digits", Path(name))
        for pipeline in PIPELINES:
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
    bounds = BOUNDS if row["pipeline"] == "digits-gan" else {key: bound for key, bound in BOUNDS.items() if key != "over_floor"}
    missed = [f"{key} {row[key]:.3f} above {bound}" for key, bound in bounds.items() if row.get(key, bound) > bound]
    if row["pipeline"] == "digits-gan" and row["novelty"] < LEAST_NOVELTY:
        missed.append(f"novelty {row['novelty']:.3f} below {LEAST_NOVELTY}")
    if row["cpu_seconds"] > MOST_SECONDS:
        missed.append(f"{row['cpu_seconds']:.0f} s of processor time")
    return missed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
