"""Measure the validation score: what it costs beside the steps between two scores, and which row it chooses.

    python -m benchmarks.validation [SEEDS]

cost    default recipes on pictures: processor seconds of a score, as a share of the 100 steps between two scores by default. All:
        of 6,000 examples, a tenth of 60,000; else of as many as the default takes
choice  SEEDS trainings of a VAE on TRAIN noisy pictures, at a constant learning rate and without dropout, so that it
        overfits, scored in each row by SCORED examples and by fewer. The row with the best score of the fewer would be
        served: by how much its score of all is worse than the best one, in bits/dim, and by how much the last score is

Prints a table, and writes docs/results/validation.json.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.evaluation import RECIPES, pictures
from benchmarks.loops import loop
from benchmarks.pipelines import line, write
from remint.distributed.machine import deterministic
from remint.distributed.world import SINGLE_PROCESS
from remint.models.contract import Model, Phase
from remint.models.families import family
from remint.records import DataSpec
from remint.settings import plugins
from remint.settings.recipe import TrainingSettings
from remint.training.feed import InMemory
from remint.training.validation import CHUNK, Score, scorer

SEEDS = 3
ALL = 6_000
FEWER = (250, 500, 1_000)
SIDE, STEPS, EVERY = 16, 400, 20  # of the trainings of ``choice``
TRAIN, SCORED = 100, 2_000
OVERFITS = {"learning_rate": 5e-3, "final_learning_rate": 1.0}
DEFAULT = TrainingSettings()


def build(name: str, x_NX: np.ndarray[Any, Any], block: dict[str, Any], seed: int) -> tuple[Model, list[Phase], DataSpec]:
    spec = DataSpec(shape=x_NX.shape[1:], levels=17 if x_NX.shape[-1] == 8 else 256)
    settings = plugins.settings_of(name).model_validate(block)
    torch.manual_seed(seed)
    model = family(name).build(settings, spec)
    model.initialise(torch.from_numpy(x_NX))
    return model, family(name).phases(model, settings), spec


def train(model: Model, phases: list[Phase], x_NX: np.ndarray[Any, Any], score: Score | None, **settings: Any) -> None:
    chosen = TrainingSettings(checkpoint_every=settings["steps"], **settings)
    loop(model, phases, InMemory(torch.from_numpy(x_NX), None), chosen, SINGLE_PROCESS, stop=lambda: False, score=score)


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def cost(name: str, side: int, block: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the shares of one recipe, from ``steps`` steps and the score of one chunk."""
    x_NX, _ = pictures(1200, side, 0)
    model, phases, spec = build(name, x_NX, block, 0)
    step = seconds(lambda: train(model, phases, x_NX, None, steps=steps, validate_every=steps)) / steps
    score = scorer(model, x_NX[:CHUNK], None, spec, DEFAULT, SINGLE_PROCESS)
    assert score is not None
    example = min(seconds(lambda: score(model.eval())) for _ in range(3)) / CHUNK
    shares = {key: example * count / (step * DEFAULT.validate_every) for key, count in counts().items()}
    return {"part": "cost", "model": f"{name}, {side} pixels", "step_ms": 1e3 * step, **shares}


def counts() -> dict[str, int]:
    return {"all": ALL, "default": min(ALL, DEFAULT.validation_examples)}


def choice(seed: int) -> dict[str, Any]:
    """Return by how much the score of the served row is worse than the best one, with fewer examples."""
    x_NX, validation_NX = (pictures(count, SIDE, 2 * seed + split)[0] for split, count in enumerate((TRAIN, SCORED)))
    model, phases, spec = build("vae", x_NX, {"dropout": 0.0}, seed)
    scores: dict[int, list[float]] = {count: [] for count in (*FEWER, SCORED)}
    scorers = {
        count: scorer(model, validation_NX, None, spec, TrainingSettings(validation_examples=count, seed=seed), SINGLE_PROCESS)
        for count in scores
    }

    def every(judged: Model) -> float:
        for count, score in scorers.items():
            assert score is not None
            scores[count].append(score(judged))
        return scores[SCORED][-1]

    train(model, phases, x_NX, every, steps=STEPS, validate_every=EVERY, seed=seed, **OVERFITS)
    of_all = np.array(scores[SCORED])
    worse = {str(count): float(of_all[int(np.argmin(scores[count]))] - of_all.min()) for count in FEWER}
    best = float(of_all.min())
    rows = {"rows": len(of_all), "best_row": int(of_all.argmin()) + 1, "best": best, "last": float(of_all[-1]) - best}
    return {"part": "choice", "model": f"vae, {SIDE} pixels, seed {seed}", **rows, **worse}


def main(seeds: int = SEEDS) -> None:
    os.environ["REMINT_EVENTS"] = os.devnull
    results = []
    with deterministic(threads=1):
        for name, side, block, steps in RECIPES:
            if name != "gan":  # it has no likelihood
                results.append(cost(name, side, block, steps))
                print(line(results[-1]), flush=True)
        for seed in range(seeds):
            results.append(choice(seed))
            print(line(results[-1]), flush=True)
    write("validation", results)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
