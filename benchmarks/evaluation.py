"""Measure whether the intervals of likelihoods hold what they say, and what an evaluation costs beside its training.

    python -m benchmarks.evaluation [REPEATS]

coverage  held-out sets of 300 rows, by REPEATS seeds. A linear VAE has an ELBO in closed form for each row, a made-up density
          has a known noise. The share of 95% intervals that hold the true mean, and of one-sided 95% limits of a paired
          difference below the true difference, is at least 93%; few samples widen the interval by at most 2%, compared with 64.
          Of skewed values a bootstrap covers less: there, as much as with 64 samples.
cost      default recipes on pictures of 8, 32 and 64 pixels: processor seconds of all training steps and of the default
          evaluation, both from a part. The evaluation takes at most a tenth, or less than ten seconds.
short     a residual VAE at 64 pixels that trains only SHORT steps: its evaluation takes longer, and what the run says of it

Prints a table, and writes docs/results/evaluation.json; ends with status 1 if a bound is missed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from benchmarks.loops import loop
from benchmarks.pipelines import line, write
from remint.data.arrays import Dataset, Split
from remint.distributed.machine import deterministic
from remint.distributed.world import World
from remint.evaluation import features, likelihood
from remint.evaluation.context import EvaluationContext, Measurement
from remint.evaluation.evaluate import measure
from remint.models.contract import standard_normal
from remint.models.families import family
from remint.models.vae import Vae
from remint.promotion import durations, paired
from remint.records import Column, DatasetVersion, DataSpec
from remint.settings import plugins
from remint.settings.judging import EvaluationSettings
from remint.settings.recipe import TrainingSettings
from remint.training.feed import InMemory

REPEATS, ROWS, TRUTH = 300, 300, 200_000  # seeds; held-out rows; rows of the true mean
LATENT, DIMS = 2, 6
COVERED, WIDER = 0.93, 1.02  # bounds
PART_DRAWS, PART_EXAMPLES = 2, 256  # of the evaluation that the cost is taken from
SHORT = 40  # steps

Array = np.ndarray[Any, Any]


def dataset_of(spec: DataSpec, train: Split, held_out: Split) -> Dataset:
    version = DatasetVersion(name="rows", source="made", raw_sha256="", spec=spec, split={}, counts={}, files={})
    return Dataset(version, train, train, held_out)


TABLE = DataSpec(shape=(DIMS,), columns=tuple(Column(name=str(d)) for d in range(DIMS)))


def table_rows(count: int, seed: int, wide: float) -> Tensor:
    """Return correlated normal rows, of which a tenth is ``wide`` times as wide as the others."""
    mixing_DD = standard_normal((DIMS, DIMS), "mixing")
    wide_N1 = torch.where(torch.special.ndtr(standard_normal((count, 1), "wide", seed)) < 0.1, wide, 1.0)
    return wide_N1 * standard_normal((count, DIMS), "rows", seed) @ mixing_DD


def linear_vae(noise: float, seed: int) -> Vae:
    """Return a VAE of linear maps; ``noise`` scales what a latent sample moves in the log weight."""
    settings = plugins.settings_of("vae").model_validate({"latent": LATENT, "layers": 0})
    torch.manual_seed(seed)
    vae: Vae = family("vae").build(settings, TABLE)
    with torch.no_grad():
        list(vae.decoder.modules())[-1].weight.mul_(noise)  # type: ignore[operator, union-attr]
    return vae.eval().requires_grad_(False)


def exact_elbo(vae: Vae, x_ND: Tensor) -> Array:
    """Return -ELBO of each row: the log weight has degree two in the noise, whose moments these points have."""
    points = LATENT**0.5 * torch.cat([torch.eye(LATENT), -torch.eye(LATENT)])
    return -vae.elbo(x_ND, points[:, None].expand(-1, len(x_ND), -1)).double().mean(0).numpy()


class NoisyDensity:
    """-log p(x) = x^2 / 2 of the first column, and ``noise`` times a standard normal number."""

    density_noise = 1

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def log_prob(self, x_BD: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        return -0.5 * x_BD[:, 0].double().square() + self.noise * noise_BN[:, 0].double()


def of_rows(model: Any, metric: str, seed: int, x_ND: Tensor) -> Measurement:
    rows = dataset_of(TABLE, Split(x_ND.numpy(), None), Split(x_ND.numpy(), None))
    context = EvaluationContext(rows, {}, EvaluationSettings(seed=seed), metrics=frozenset({metric}))
    return (likelihood.bounds if metric == "elbo" else likelihood.exact)(model, context)[metric]


@torch.no_grad()
def coverage(name: str, model: Any, metric: str, truth: float, repeats: int, wide: float = 1.0) -> dict[str, Any]:
    """Return how often the intervals hold the truth, with the samples of the rule and with MOST_SAMPLES."""
    covered, with_most, taken, widths = 0, 0, [], []
    for seed in range(repeats):
        x_ND = table_rows(ROWS, seed, wide)
        found = of_rows(model, metric, seed, x_ND)
        first, likelihood.FIRST_SAMPLES = likelihood.FIRST_SAMPLES, likelihood.MOST_SAMPLES
        most = of_rows(model, metric, seed, x_ND)
        likelihood.FIRST_SAMPLES = first
        covered += found.low <= truth <= found.high
        with_most += most.low <= truth <= most.high
        taken.append(found.repeats)
        widths.append((found.high - found.low) / (most.high - most.low))
    return {
        "part": "coverage", "model": name, "repeats": repeats, "covered": covered / repeats,
        "covered_with_most": with_most / repeats, "samples": [int(np.min(taken)), float(np.mean(taken)), int(np.max(taken))],
        "wider": float(np.mean(widths)), "skewed": wide != 1.0,
    }  # fmt: skip


@torch.no_grad()
def paired_coverage(name: str, models: list[Vae], truth: float, repeats: int) -> dict[str, Any]:
    """Return how often the lower one-sided limit of the second model's improvement over the first is below the truth."""
    below = 0
    for seed in range(repeats):
        first, second = (of_rows(model, "elbo", seed, table_rows(ROWS, seed, 1.0)) for model in models)
        below += paired.difference(first.values_N - second.values_N, 0.95, 0.95).low <= truth
    return {"part": "paired", "model": name, "repeats": repeats, "covered": below / repeats}


def pictures(count: int, side: int, seed: int) -> tuple[Array, Array]:
    """Return digits in random colours, enlarged, with noise of a different size in each; and their labels."""
    from sklearn.datasets import load_digits

    digits, generator = load_digits(), np.random.default_rng(seed)
    place_N = generator.integers(len(digits.images), size=count)
    x_NHW = digits.images[place_N]
    if side == 8:
        return x_NHW[:, None].astype(np.uint8), digits.target[place_N].astype(np.int64)
    x_NCHW = np.kron(x_NHW[:, None], np.ones((side // 8, side // 8))) / 16 * generator.uniform(0.2, 1.0, size=(count, 3, 1, 1))
    x_NCHW += generator.normal(size=x_NCHW.shape) * generator.uniform(0.0, 0.1, size=(count, 1, 1, 1))
    return (x_NCHW.clip(0, 1) * 255).astype(np.uint8), digits.target[place_N].astype(np.int64)


RECIPES: list[tuple[str, int, dict[str, Any], int]] = [  # family, side, model, steps that are timed
    ("vae", 8, {}, 200), ("flow", 8, {}, 200), ("gan", 8, {}, 200),
    ("vae", 32, {"network": "residual"}, 8), ("flow", 32, {"network": "multiscale"}, 8), ("gan", 32, {"network": "dcgan"}, 40),
    ("vae", 64, {"network": "residual"}, 3), ("flow", 64, {"network": "multiscale"}, 3), ("gan", 64, {"network": "dcgan"}, 16),
]  # fmt: skip


def cost(name: str, side: int, block: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the seconds of a default training and of its default evaluation, with ``steps`` steps and a part of the other."""
    x_NX, y_N = pictures(1200, side, 0)
    held_out = Split(*pictures(2 * PART_EXAMPLES, side, 1))
    spec = DataSpec(shape=x_NX.shape[1:], levels=17 if side == 8 else 256, classes=10)
    pictured = dataset_of(spec, Split(x_NX, y_N), held_out)
    model_settings = plugins.settings_of(name).model_validate(block)
    settings = TrainingSettings(steps=steps, validate_every=steps, checkpoint_every=steps)
    torch.manual_seed(0)
    model, x = family(name).build(model_settings, spec), torch.from_numpy(x_NX)
    model.initialise(x)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        phases = family(name).phases(model, model_settings)
        loop(model, phases, InMemory(x, None), settings, World(0, 1, torch.device("cpu")), stop=lambda: False)
        training = (time.process_time() - began) / steps * TrainingSettings().steps
        features.fit(pictured, Path(folder) / "features")
        extractor = features.load(Path(folder) / "features")
    default = EvaluationSettings()
    part = default.model_copy(update={"draws": PART_DRAWS, "examples": PART_EXAMPLES})
    chosen = [metric for metric in ("nll", "elbo") if plugins.facts_of(metric).needs in model_settings.can]
    repeats, seconds = 0, {}
    for metric, share in [*((m, default.examples / PART_EXAMPLES) for m in chosen), ("fd_domain", default.draws / PART_DRAWS)]:
        began = time.process_time()
        found = measure(model.eval(), [metric], EvaluationContext(pictured, {"domain": extractor}, part), "benchmark")[0]
        seconds[metric] = (time.process_time() - began) * share
        repeats = max(repeats, found[metric].repeats)
    return {
        "part": "cost", "model": f"{name}, {side} pixels", "settings": block, "training_s": training,
        "evaluation_s": sum(seconds.values()), "share": sum(seconds.values()) / training, "samples": repeats, "seconds": seconds,
    }  # fmt: skip


def short(row: dict[str, Any]) -> dict[str, Any]:
    """Return the cost of the same evaluation of a training of SHORT steps, and the note of the run."""
    training = row["training_s"] * SHORT / TrainingSettings().steps
    note = durations.Durations(training, row["evaluation_s"], row["seconds"]).note(list(row["seconds"]))
    share = row["evaluation_s"] / training
    return {"part": "short", "model": row["model"], "steps": SHORT, "training_s": training, "share": share, "note": note}


def missed(row: dict[str, Any]) -> bool:
    """Return whether a bound is missed; of a coverage: whether that is shown at a level of 1%."""
    if row["part"] == "short":
        return row["share"] > durations.SHARE and (row["note"] is None or "evaluation." not in row["note"])
    if row["part"] == "cost":
        return bool(row["evaluation_s"] > max(durations.LEAST, durations.SHARE * row["training_s"]))
    least = row["covered_with_most"] - 0.02 if row.get("skewed") else COVERED  # a bootstrap of skewed values covers less
    few = binomtest(round(row["covered"] * row["repeats"]), row["repeats"], least, alternative="less").pvalue < 0.01
    return bool(few or row.get("wider", 1.0) > WIDER)


def main(repeats: int = REPEATS) -> int:
    os.environ["REMINT_EVENTS"] = os.devnull
    features.STEPS = 5  # their quality does not change their cost
    results = []
    vaes = {noise: linear_vae(noise, 1) for noise in (0.3, 3.0, 6.0)}
    for noise, wide in ((0.3, 1.0), (3.0, 1.0), (6.0, 1.0), (3.0, 3.0)):
        truth = float(exact_elbo(vaes[noise], table_rows(TRUTH, -1, wide)).mean())
        name = f"linear VAE, weights times {noise}" + (f", a tenth of the rows {wide:.0f} times as wide" if wide > 1 else "")
        results.append(coverage(name, vaes[noise], "elbo", truth, repeats, wide))
    truth = 0.5 * float(standard_normal((DIMS, DIMS), "mixing")[:, 0].square().sum())
    results += [coverage(f"density, noise of {noise} nats", NoisyDensity(noise), "nll", truth, repeats) for noise in (1.0, 30.0)]
    rivals, x_ND = [vaes[3.0], linear_vae(3.0, 2)], table_rows(TRUTH, -1, 1.0)
    truth = float((exact_elbo(rivals[0], x_ND) - exact_elbo(rivals[1], x_ND)).mean())
    results.append(paired_coverage("two linear VAEs", rivals, truth, repeats))
    for row in results:
        print(line(row), flush=True)
    with deterministic(threads=1):
        for recipe in RECIPES:
            results.append(cost(*recipe))
            print(line(results[-1]), flush=True)
            if recipe[:2] == ("vae", 64):
                results.append(short(results[-1]))
                print(line(results[-1]), flush=True)
    write("evaluation", results)
    return int(any(missed(row) for row in results))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
