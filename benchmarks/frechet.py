"""Time the Frechet distance of 10,000 examples of 2,048 features, and that of torchmetrics.

    .venv/bin/python benchmarks/frechet.py

Both get the same float64 arrays. Timed is the distance from the sums over the batches: `frechet_distance` of two `Moments`
in remint, `FrechetInceptionDistance.compute` in torchmetrics (features are passed through instead of its network). Summing the
batches is one matrix product in both and is left out. Each is timed REPEATS times in turn, in one process with torch's default
number of threads; the best time counts.

Two pairs of sets: independent normal features, and nonnegative features that are correlated over four orders of magnitude,
like the pooled activations of a network. Writes docs/results/frechet.json.

Shapes: N examples, D features.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from remint.distributed.machine import fingerprint
from remint.evaluation.frechet import Moments, frechet_distance

EXAMPLES, FEATURES = 10_000, 2_048
REPEATS = 5
FASTER, EQUAL = 4.0, 1e-6  # the claims: times faster, relative difference
OUT = Path(__file__).parents[1] / "docs/results/frechet.json"


class Features(nn.Module):
    """Identity in place of torchmetrics' network: the features are given."""

    num_features = FEATURES

    def forward(self, f_ND: Tensor) -> Tensor:
        return f_ND


def independent(seed: int) -> Tensor:
    """Return standard normal numbers; the second set is 10% wider and shifted by 0.1."""
    f_ND = torch.randn(EXAMPLES, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return f_ND * (1.0 + 0.1 * seed) + 0.1 * seed


def activations(seed: int) -> Tensor:
    """Return rectified mixtures of latent factors with strengths 1 / k; in the second set they are slightly rotated."""
    cause_ND = torch.randn(EXAMPLES, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first_DD, turn_DD = torch.randn(2, FEATURES, FEATURES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    strength_D = 1.0 / torch.arange(1, FEATURES + 1, dtype=torch.float64)
    return ((cause_ND * strength_D) @ (first_DD + 0.3 * seed * turn_DD)).relu()


def stopped(timed: Callable[[], float]) -> tuple[float, float]:
    """Return the value and its time in seconds."""
    began = time.perf_counter()
    value = timed()
    return value, time.perf_counter() - began


def compare(make: Callable[[int], Tensor]) -> dict[str, Any]:
    a_ND, b_ND = make(0), make(1)
    theirs = FrechetInceptionDistance(feature=Features())
    theirs.update(a_ND, real=True)
    theirs.update(b_ND, real=False)
    ours = Moments.of(a_ND.numpy()), Moments.of(b_ND.numpy())
    runs = []
    for _ in range(REPEATS):
        theirs._computed = None  # discard its cached result
        runs.append((stopped(lambda: frechet_distance(*ours)), stopped(lambda: float(theirs.compute()))))
    (value, _), (other, _) = runs[0]
    seconds, their_seconds = (min(run[side][1] for run in runs) for side in (0, 1))
    return {
        "distance": value,
        "torchmetrics_distance": other,
        "relative_difference": abs(value - other) / other,
        "seconds": seconds,
        "torchmetrics_seconds": their_seconds,
        "times_faster": their_seconds / seconds,
    }


def main() -> None:
    results = {make.__name__: compare(make) for make in (independent, activations)}
    for name, result in results.items():
        print(
            f"{name}: {result['seconds']:.2f} s, torchmetrics {result['torchmetrics_seconds']:.2f} s: "
            f"{result['times_faster']:.1f} times faster, relative difference {result['relative_difference']:.1e}"
        )
    machine = fingerprint(torch.device("cpu"), torch.get_num_threads(), 1)
    OUT.write_text(json.dumps({"machine": machine, "examples": EXAMPLES, "features": FEATURES, **results}, indent=1) + "\n")
    missed = [n for n, r in results.items() if r["relative_difference"] > EQUAL or r["times_faster"] < FASTER]
    if missed:
        raise SystemExit(f"not {FASTER} times faster, or not equal to {EQUAL}: {', '.join(missed)}")


if __name__ == "__main__":
    main()
