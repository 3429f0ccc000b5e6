"""Measure modes of two densities in the plane: captured by the default GAN, dropped by older losses, and the flow's density.

    python -m benchmarks.modes [SEED ...]

ring   8 Gaussians of deviation 0.02 on a circle of radius 2; entropy -2.907 nats
grid   5 x 5 Gaussians of deviation 0.05, two apart; entropy 0.065 nats

Bounds of the GAN, in 100 seconds of processor time and with its raw weights (the averaged ones are reported too): every mode
has 20 of 2,500 samples, 94% are within three deviations of a mode, and the deviation of these within a mode is at least 0.65 of
the true one (real points have 0.97, because the tails are cut). The losses of 2014 are shown for comparison, for the first
seed: with the same networks, penalties, steps and learning rates, and as published, without penalties and Fourier features. The
collapse guard ends a training that drops modes, and the weights that it returns to are judged. A diverged training draws
nothing. Bounds of the flow: 0.10 nats (ring) and 0.15 (grid) above the entropy.

Prints a table, writes docs/results/modes.json and, for the first seed, modes.png. Ends with status 1 if a bound of the
default GAN or of the flow is missed. All trainings are real ones (training/train.py), on 50,000 points each.

Shapes: N points, M modes, 2 the plane.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.pipelines import ROOT, line, write
from remint.data.arrays import Dataset, Split
from remint.distributed.machine import deterministic
from remint.distributed.world import World
from remint.errors import StepError
from remint.evaluation import drawing
from remint.models.contract import HasLogProb, Model, standard_normal
from remint.records import Column, DatasetVersion, DataSpec
from remint.settings.recipe import MODEL_SETTINGS, Recipe, TrainingSettings
from remint.training import train
from remint.training.checkpoint import Checkpoints
from remint.training.divergence import RECORD

Array = np.ndarray[Any, Any]

SAMPLES, LEAST_OF_A_MODE, WITHIN = 2500, 20, 3.0
LEAST_QUALITY, LEAST_WIDTH, MOST_SECONDS = 0.94, 0.65, 100.0
MOST_NATS_ABOVE = {"ring": 0.10, "grid": 0.15}
DEFAULT = "relativistic"


@dataclass(frozen=True)
class Modes:
    """Equal Gaussians in the plane, and points drawn from them as a dataset of two numeric columns."""

    name: str
    centre_M2: Array
    deviation: float

    @property
    def scale(self) -> float:
        """Divisor of both columns: their means are 0 and their deviations equal."""
        return float(np.sqrt((self.centre_M2**2).sum(1).mean() / 2 + self.deviation**2))

    @property
    def entropy(self) -> float:
        """Entropy in nats, for modes that do not overlap."""
        return math.log(len(self.centre_M2)) + math.log(2 * math.pi * math.e * self.deviation**2)

    def draw(self, count: int, seed: int) -> Array:
        generator = np.random.default_rng(seed)
        which_N = generator.integers(len(self.centre_M2), size=count)
        return self.centre_M2[which_N] + self.deviation * generator.normal(size=(count, 2))

    def dataset(self) -> Dataset:
        columns = tuple(Column(name=name, scale=self.scale) for name in "xy")
        version = DatasetVersion(
            name=self.name,
            source="benchmarks/modes.py",
            raw_sha256="",
            spec=DataSpec(shape=(2,), columns=columns),
            split={},
            counts={},
            files={},
        )
        counts = (50_000, 2_000, 10_000)
        splits = (Split((self.draw(n, seed) / self.scale).astype(np.float32), None) for seed, n in enumerate(counts))
        return Dataset(version, *splits)

    def judge(self, x_N2: Array) -> dict[str, float]:
        """Return the captured modes, the share of points within three deviations of a mode, and the captured modes' widths."""
        square_NM = ((x_N2[:, None] - self.centre_M2) ** 2).sum(-1)
        mode_N, within_N = square_NM.argmin(1), square_NM.min(1) <= (WITHIN * self.deviation) ** 2
        of_modes = [x_N2[within_N & (mode_N == mode)] for mode in range(len(self.centre_M2))]
        widths = [float(part.std(0).mean()) / self.deviation for part in of_modes if len(part) >= LEAST_OF_A_MODE]
        return {
            "modes": len(widths),
            "quality": float(within_N.mean()) if len(x_N2) else 0.0,
            "width": float(np.mean(widths)) if widths else 0.0,
            "least_width": min(widths, default=0.0),
        }


def ring() -> Modes:
    angle_M = np.arange(8) * math.pi / 4
    return Modes("ring", 2.0 * np.stack([np.cos(angle_M), np.sin(angle_M)], axis=1), 0.02)


def grid() -> Modes:
    place_5 = 2.0 * np.arange(-2, 3)
    return Modes("grid", np.stack(np.meshgrid(place_5, place_5), axis=-1).reshape(-1, 2), 0.05)


GAN: dict[str, Any] = {"latent": 4, "hidden": 128, "layers": 3, "fourier": 32, "fourier_scale": 15.0, "critic_learning_rate": 2.0}
PENALTY = {"ring": {"penalty": 0.3, "penalty_final": 0.003}, "grid": {"penalty": 1.0, "penalty_final": 0.01}}
GAN_STEPS = {"ring": 22_000, "grid": 32_000}
GAN_TRAINING = {"batch_size": 64, "learning_rate": 1e-3, "ema": 0.999, "checkpoint_every": 1_000_000}
FLOW: dict[str, Any] = {"couplings": 6, "hidden": 128, "bins": 32, "bound": 2.5, "tails": "linear", "dropout": 0.0}
FLOW_TRAINING = {"steps": 1_500, "batch_size": 512, "learning_rate": 2e-3, "ema": 0.99, "checkpoint_every": 1_000_000}

PLAIN = {"penalty": 0.0, "penalty_final": 0.0, "fourier": 0}  # as the losses were published

# GANs to train: name in the table, and changes of the settings above.
GANS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "non_saturating": {"loss": "non_saturating"},
    "minimax": {"loss": "minimax"},
    "non_saturating, 2014": {"loss": "non_saturating", **PLAIN},
    "minimax, 2014": {"loss": "minimax", **PLAIN},
}


def recipe(modes: Modes, name: str, seed: int) -> Recipe:
    family = "flow" if name == "flow" else "gan"
    model = FLOW if name == "flow" else GAN | PENALTY[modes.name] | GANS[name]
    training = FLOW_TRAINING if name == "flow" else GAN_TRAINING | {"steps": GAN_STEPS[modes.name]}
    return Recipe(
        dataset=modes.name,
        family=family,
        model=MODEL_SETTINGS[family].model_validate(model),
        training=TrainingSettings.model_validate({**training, "seed": seed}),
    )


def measured(modes: Modes, name: str, seed: int) -> tuple[dict[str, Any], Array]:
    """Run one training. Return its measurements and samples."""
    dataset, world = modes.dataset(), World(0, 1, torch.device("cpu"))
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, deterministic(threads=1):
        checkpoints = Checkpoints(Path(folder), "modes")
        with checkpoints.held("benchmarks/modes.py"):
            try:
                state = train.fit(recipe(modes, name, seed), dataset, world, checkpoints, lambda: False)
            except StepError:  # diverged, with its record on disk
                state = None
        row = {"data": modes.name, "trained": name, "seed": seed, "cpu_seconds": time.process_time() - began}
        if state is None:
            step, nothing_02 = json.loads((checkpoints.diverged / RECORD).read_text())["step"], np.empty((0, 2))
            return row | {"steps": step, "ended": "diverged", **modes.judge(nothing_02)}, nothing_02
        assert state.ending is not None
        row |= {"steps": state.step, "ended": state.ending.ended}
        raw, averaged = state.model.eval(), state.served()
        if name == "flow":
            row["nats_above_entropy"] = nats(averaged, dataset.held_out.x_NX, modes) - modes.entropy
        x_N2 = samples(averaged if name == "flow" or state.ending.collapsed else raw, modes)
        row |= modes.judge(x_N2)
        if name != "flow":
            row |= {f"averaged_{key}": value for key, value in modes.judge(samples(averaged, modes)).items()}
    return row, x_N2


def samples(model: Any, modes: Modes) -> Array:
    with torch.no_grad():
        x_N2 = model.sample(standard_normal((SAMPLES, model.sample_noise), 0, "benchmark"))
    return x_N2.double().numpy() * modes.scale


def nats(model: Model, x_N2: Array, modes: Modes) -> float:
    """Return the mean of -log p of the points, in the units before division by the scale."""
    assert isinstance(model, HasLogProb)
    x = torch.from_numpy(x_N2)
    with torch.no_grad():
        log_prob_N = model.log_prob(x, standard_normal((len(x), model.density_noise), 0, "nats"))
    return 2 * math.log(modes.scale) - float(log_prob_N.double().mean())


def missed(row: dict[str, Any], modes: Modes) -> list[str]:
    what = f"{row['data']}, {row['trained']}, seed {row['seed']}: "
    if row["trained"] == "flow":
        most = MOST_NATS_ABOVE[modes.name]
        return [what + f"{row['nats_above_entropy']:.3f} nats above the entropy, more than {most}"] * (
            row["nats_above_entropy"] > most
        )
    if row["trained"] != DEFAULT:
        return []
    count = len(modes.centre_M2)
    bounds = {
        f"ended by {row['ended']}": row["ended"] == "finished",
        f"{row['modes']} of {count} modes": row["modes"] == count,
        f"{row['quality']:.3f} within three deviations, less than {LEAST_QUALITY}": row["quality"] >= LEAST_QUALITY,
        f"{row['width']:.3f} of the true width, less than {LEAST_WIDTH}": row["width"] >= LEAST_WIDTH,
        f"{row['cpu_seconds']:.0f} s of processor time": row["cpu_seconds"] <= MOST_SECONDS,
    }
    return [what + text for text, held in bounds.items() if not held]


def picture(drawn: dict[tuple[str, str], tuple[dict[str, Any], Array]], densities: dict[str, Modes]) -> None:
    """Draw one row of panels per density: real points, and the samples of each training."""
    names = ["real", *dict.fromkeys(name for _, name in drawn)]
    figure = Figure(figsize=(2.6 * len(names), 3.2 * len(densities)), dpi=drawing.DPI)
    for index, modes in enumerate(densities.values()):
        for place, name in enumerate(names):
            axes = figure.add_subplot(len(densities), len(names), index * len(names) + place + 1)
            row, x_N2 = ({}, modes.draw(SAMPLES, 9)) if name == "real" else drawn[modes.name, name]
            axes.scatter(*x_N2.T, s=1.5, lw=0, color=drawing.REAL if name == "real" else drawing.MODEL, rasterized=True)
            told = [
                name.replace("_", "-"),
                f"{row['modes']} of {len(modes.centre_M2)} modes, {row['quality']:.0%} on them" if row else modes.name,
            ]
            told.append(f"{row['ended']} at step {row['steps']:,}" if row and row["ended"] != "finished" else "")
            axes.set_title("\n".join(told), size=drawing.SMALL - 1, color=drawing.INK, va="bottom")
            edge = 1.25 * np.abs(modes.centre_M2).max()
            axes.set(xlim=(-edge, edge), ylim=(-edge, edge), xticks=[], yticks=[], aspect="equal")
            axes.spines[:].set_color(drawing.QUIET)
    figure.tight_layout()
    figure.savefig(ROOT / "docs/results/modes.png", metadata={"Software": None}, facecolor="white")


def main(*seeds: str) -> int:
    os.environ["REMINT_EVENTS"] = os.devnull  # a table is printed, not progress
    densities = {modes.name: modes for modes in (ring(), grid())}
    rows: list[dict[str, Any]] = []
    drawn: dict[tuple[str, str], tuple[dict[str, Any], Array]] = {}
    misses: list[str] = []
    first, *others = [int(seed) for seed in seeds or ("0", "1", "2")]
    todo = [(name, first) for name in (*GANS, "flow")] + [(name, seed) for seed in others for name in (DEFAULT, "flow")]
    for name, seed in todo:
        for modes in densities.values():
            row, x_N2 = measured(modes, name, seed)
            rows.append(row)
            drawn.setdefault((modes.name, name), (row, x_N2))
            misses += missed(row, modes)
            print(line(row), flush=True)
    picture(drawn, densities)
    print(f"written: {write('modes', rows)}")
    print("\n".join(f"MISSED  {miss}" for miss in misses) or "every bound is held")
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
