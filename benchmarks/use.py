"""Measure the use of promoted models: morphs, throughput, and the time to the first sample.

    python -m benchmarks.use

morphs       100 pairs of held-out digits, themselves above the 5th percentile of the log density of held-out digits, 12 steps
             each: share of strips whose neighbours are all nearer to each other than the ends (root mean square over pixels),
             and share of members above that percentile; the density is the model's own
throughput   processor time of the bare model over that of remint, in the same blocks: log_prob of 100,000 digits with DRAWS of
             noise, their score (of the bare model the parts of the default score), and sample of 100,000 rows; one thread, in
             turns, the least of ROUNDS each
first use    seconds from an interpreter that has imported torch and mlflow to the first sample of remint.load

Prints the numbers, writes docs/results/use.json and interpolations.png, and ends with status 1 if a bound is missed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pipelines import ROOT, line, prepared, train_into, write
from remint.data.arrays import Dataset
from remint.evaluation import plots
from remint.models import density
from remint.models.draw import BLOCK
from remint.models.scores import DEFAULT, Scorer
from remint.serving.anomalies import calibration
from remint.serving.interpolation import slerp
from remint.serving.model import ServedModel, load
from remint.settings.params import load_params

PIPELINES = {"digits": ("digits-vae", "digits-flow", "digits-vaegan"), "cancer": ("cancer-vae", "cancer-flow")}
PAIRS, STEPS, MANY, DRAWS, ROUNDS = 100, 12, 100_000, 2, 2
PERCENTILE = 5.0
LEAST = {"nearer": 1.0, "dense": 1.0, "log_prob": 0.9, "score": 0.9, "sample": 0.9}  # shares and ratios
MOST_SECONDS = 2.0  # to the first sample

FIRST = """
import sys, time, torch, mlflow, pandas
began = time.monotonic()
import remint
remint.load(sys.argv[1]).sample(1)
print(time.monotonic() - began)
"""


def trained(pipeline: str, dataset: Dataset, folder: Path) -> ServedModel:
    """Train a pipeline of params.yaml and load it as it is served."""
    recipe = load_params(ROOT).pipeline(pipeline).recipe
    out = folder / pipeline
    train_into(out, recipe, pipeline, dataset)
    served = load(out, ref=pipeline)
    return replace(served, calibration=cache(partial(calibration.measure, served.model, "benchmark", dataset)))


def morphs(served: ServedModel, real_NX: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Return both shares, and the first strips x_NX."""
    real_N = served.log_prob(real_NX).values
    least = np.percentile(real_N, PERCENTILE)
    z_NZ = served.encode(real_NX[real_N > least][: 2 * PAIRS])  # of other ends a strip begins below it
    nearer, dense = 0, 0
    strips = []
    for a, b in zip(z_NZ[:PAIRS], z_NZ[PAIRS:], strict=True):
        strip = served.decode(slerp(a, b, np.linspace(0, 1, STEPS)))
        x = strip.reshape(STEPS, -1).astype(float)
        steps, ends = np.linalg.norm(np.diff(x, axis=0), axis=1), np.linalg.norm(x[-1] - x[0])
        nearer += int((steps < ends).all())
        dense += int((served.log_prob(strip).values > least).sum())
        strips.append(strip)
    return {"nearer": nearer / PAIRS, "dense": dense / (PAIRS * STEPS)}, np.concatenate(strips[:8])


def seconds(*acts: Callable[[], Any]) -> list[float]:
    """Return the least processor time of each act, which take turns."""
    found = [float("inf")] * len(acts)
    for _ in range(ROUNDS):
        for place, act in enumerate(acts):
            began = time.process_time()
            act()
            found[place] = min(found[place], time.process_time() - began)
    return found


def bare_log_prob(served: ServedModel, x_NX: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield the log density of each block by the model alone, with noise that is made once."""
    count, size = density.noise_shape(served.model, DRAWS)
    noise_KBD = torch.randn(count, BLOCK, size)
    with torch.no_grad():
        for at in range(0, len(x_NX), BLOCK):
            yield density.log_prob(served.model, torch.from_numpy(x_NX[at : at + BLOCK]), noise_KBD[:, : len(x_NX) - at])


def bare_sample(served: ServedModel, count: int) -> Iterator[torch.Tensor]:
    model: Any = served.model
    with torch.no_grad():
        for _ in range(0, count, BLOCK):
            yield model.sample(torch.randn(BLOCK, model.sample_noise))


def bare_score(served: ServedModel, x_NX: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield the parts of the default score of each block, with noise that is made once."""
    assert served.calibration is not None
    scorer = Scorer(served.model, served.spec, served.calibration().reference)
    draws, size = scorer.noise_shape
    noise_KBN, names = torch.randn(draws, BLOCK, size), scorer.needs(DEFAULT)
    with torch.no_grad():
        for at in range(0, len(x_NX), BLOCK):
            yield scorer.parts(torch.from_numpy(x_NX[at : at + BLOCK]), noise_KBN[:, : len(x_NX) - at], names)


def throughput(served: ServedModel, x_NX: np.ndarray) -> dict[str, float]:
    """Return the rate of remint as a share of that of the bare model."""
    many_NX = np.concatenate([x_NX] * (MANY // len(x_NX) + 1))[:MANY]
    found = {}
    if not served.spec.is_table:
        bare, ours = seconds(lambda: list(bare_log_prob(served, many_NX)), lambda: served.log_prob(many_NX, draws=DRAWS))
        found = {"log_prob": bare / ours, "log_prob_per_s": MANY / ours}
        bare, ours = seconds(lambda: list(bare_score(served, many_NX)), lambda: served.score(many_NX))
        found |= {"score": bare / ours, "score_per_s": MANY / ours}
    places = [(0, index) for index in range(MANY)]
    bare, ours = seconds(lambda: list(bare_sample(served, MANY)), lambda: served.draw(places))
    return {**found, "sample": bare / ours, "sample_per_s": MANY / ours}


def first_use(folder: Path) -> float:
    done = [
        subprocess.run([sys.executable, "-c", FIRST, str(folder)], capture_output=True, text=True, check=True) for _ in range(3)
    ]
    return min(float(each.stdout) for each in done)


def main() -> int:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    strips: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for data, pipelines in PIPELINES.items():
            dataset, _ = prepared(data, Path(name) / data, calibration=0.05)
            real_NX = np.array(dataset.held_out.x_NX)
            for pipeline in pipelines:
                served = trained(pipeline, dataset, Path(name))
                row: dict[str, Any] = {"pipeline": pipeline, **throughput(served, real_NX)}
                if data == "digits":
                    shares, strips[pipeline] = morphs(served, real_NX)
                    row |= shares
                assert served.folder is not None
                row["first_use_s"] = first_use(served.folder)
                rows.append(row)
                print(line(row), flush=True)
        x_NX = np.concatenate(list(strips.values()))
        plots.sample_grid(ROOT / "docs/results/interpolations.png", x_NX, dataset.spec.levels or 17, columns=STEPS)
    print(f"written: {write('use', rows)}")
    missed = [
        f"{row['pipeline']}: {key} {row[key]:.3f}" for row in rows for key, bound in LEAST.items() if row.get(key, bound) < bound
    ]
    missed += [f"{row['pipeline']}: first use {row['first_use_s']:.2f} s" for row in rows if row["first_use_s"] > MOST_SECONDS]
    print("\n".join(f"MISSED  {miss}" for miss in missed) or "every bound is held")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
