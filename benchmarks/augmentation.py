"""Measure augmentation, linear probes and the GAN's inversion on digits. Findings, with no bound to miss.

    python -m benchmarks.augmentation

augmentation  one class after another keeps FEW examples, a conditional VAE is trained on that split, and `remint augment`'s
              classifiers are trained on the split as it is, filled up by the model, and filled up by the few examples moved by
              one pixel; judged on held-out digits, which no part of it has seen, by the recall of the scarce class and by the
              balanced accuracy, whose gain has its interval over the classes
probes        accuracy of a linear probe of the latents of digits-vae and digits-flow, beside PCA and pixels
inversion     digits-gan: processor time of `encode` for one held-out digit, and root mean square error of its reconstruction
              in levels, beside the nearest training digit

Prints the numbers and writes docs/results/augmentation.json.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pipelines import ROOT, line, prepared, train_into, write
from remint.data.arrays import Dataset, Split
from remint.evaluation import representation
from remint.evaluation.context import EvaluationContext
from remint.evaluation.intervals import over_draws
from remint.serving.augmentation.benefit import classifiers
from remint.serving.model import ServedModel, load
from remint.settings.judging import EvaluationSettings
from remint.settings.params import load_params
from remint.settings.recipe import Recipe

FEW, PER_CLASS, CLASSES, INVERTED = 10, 120, 10, 64
CONDITIONAL = {"conditional": True, "latent": 8, "hidden": 256}
STEPS = 1_000  # a conditional model of a thinned split needs no more


def trained(recipe: Recipe, dataset: Dataset, folder: Path) -> ServedModel:
    train_into(folder / "out", recipe, "digits", dataset)
    return load(folder / "out", ref="digits")


def thinned(split: Split, scarce: int) -> Split:
    """Return a split with FEW examples of one class."""
    y_N = np.array(split.y_N)
    kept_N = np.sort(np.concatenate([np.flatnonzero(y_N != scarce), np.flatnonzero(y_N == scarce)[:FEW]]))
    return replace(split, x_NX=np.array(split.x_NX[kept_N]), y_N=y_N[kept_N], id_N=None)


def moved(x_NX: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return so many of the examples, moved by up to one pixel."""
    generator = np.random.default_rng(seed)
    chosen = x_NX[generator.integers(len(x_NX), size=count)]
    shifts = generator.integers(-1, 2, size=(count, 2))
    padded = np.pad(chosen, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.stack([image[:, 1 + y : 9 + y, 1 + x : 9 + x] for image, (y, x) in zip(padded, shifts, strict=True)])


def augmentation(dataset: Dataset, folder: Path) -> list[dict[str, Any]]:
    settings = load_params(ROOT).pipeline("digits-vae").recipe
    recipe = settings.model_copy(
        update={
            "model": settings.model.model_copy(update=CONDITIONAL),
            "training": settings.training.model_copy(update={"steps": STEPS}),
        }
    )
    test_NX, test_N = np.array(dataset.held_out.x_NX), np.array(dataset.held_out.y_N)
    scores: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for scarce in range(CLASSES):
        few = replace(dataset, train=thinned(dataset.train, scarce))
        served = trained(recipe, few, folder / f"scarce-{scarce}")
        x_NX, y_N = np.array(few.train.x_NX), np.array(few.train.y_N)
        lacking = PER_CLASS - FEW
        drawn_NX = served.draw([(0, index) for index in range(lacking)], [scarce] * lacking)[0]
        fills = {"nothing": x_NX[:0], "model": drawn_NX, "moved": moved(x_NX[y_N == scarce], lacking, scarce)}
        for fill, more_NX in fills.items():
            both_ND = np.concatenate([x_NX, more_NX]).reshape(-1, 64).astype(float)
            both_N = np.concatenate([y_N, np.full(len(more_NX), scarce)])
            for name, classifier in classifiers(scarce).items():
                predicted_N = classifier.fit(both_ND, both_N).predict(test_NX.reshape(-1, 64).astype(float))
                recalls = [float((predicted_N[test_N == y] == y).mean()) for y in range(CLASSES)]
                scores.setdefault((name, fill), []).append((recalls[scarce], float(np.mean(recalls))))
    rows = []
    for (name, fill), each in scores.items():
        recall_C, balanced_C = np.array(each).T
        low, high = over_draws(balanced_C - np.array(scores[name, "nothing"])[:, 1])
        of = {
            "classifier": name,
            "filled by": fill,
            "recall": float(recall_C.mean()),
            "balanced accuracy": float(balanced_C.mean()),
        }
        rows.append({"part": "augmentation", **of, "gain low": low, "gain high": high})
    return rows


def probes(dataset: Dataset, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for pipeline in ("digits-vae", "digits-flow"):
        served = trained(load_params(ROOT).pipeline(pipeline).recipe, dataset, folder / pipeline)
        with torch.no_grad():
            found = representation.probes(served.model, EvaluationContext(dataset, {}, EvaluationSettings()))
        for name, value in found.items():
            of = {"pipeline": pipeline, "probe": name, "numbers": value.fingerprint["numbers"]}
            rows.append({"part": "probes", **of, "accuracy": float(value.values_N.mean()), "low": value.low, "high": value.high})
    return rows


def inversion(dataset: Dataset, folder: Path) -> list[dict[str, Any]]:
    served = trained(load_params(ROOT).pipeline("digits-gan").recipe, dataset, folder / "digits-gan")
    x_NX = np.array(dataset.held_out.x_NX[:INVERTED])
    began = time.process_time()
    again_NX = served.reconstruct(x_NX)
    seconds = (time.process_time() - began) / len(x_NX)
    flat_ND, train_MD = (x.reshape(len(x), -1).astype(float) for x in (x_NX, np.array(dataset.train.x_NX)))
    nearest_N = np.square(flat_ND[:, None] - train_MD).mean(2).min(1)
    error = float(np.sqrt(np.square(flat_ND - again_NX.reshape(len(x_NX), -1)).mean()))
    return [{"part": "inversion", "seconds": seconds, "error": error, "nearest": float(np.sqrt(nearest_N.mean()))}]


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        dataset, _ = prepared("digits", Path(name))
        rows: list[dict[str, Any]] = []
        for part in (inversion, probes, augmentation):
            for row in part(dataset, Path(name)):
                rows.append(row)
                print(line(row), flush=True)
    print(f"written: {write('augmentation', rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
