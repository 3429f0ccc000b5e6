"""Choose the default anomaly score: compare sums of standardised scores on data that benchmarks/anomaly.py does not use.

    python -m benchmarks.score_choice

fashion, one class held out     six trainings without one class, which is told from held-out images of the other nine
fashion, one class normal       four trainings of one class, which is told from images of the other nine
wine, cancer                    trainings without one class of wines, and without the malignant biopsies

A GAN is compared on the images, with two scores that remint does not have: minus the score of its critic, and the error of the
example that a search in latent space finds (models/inversion.py), of SEARCHED examples each, since a search takes milliseconds.

Fashion-MNIST (Debian's package dataset-fashion-mnist) is reduced to 8 x 8 pixels of 17 levels and about 1,300 training images, as
many as of digits. Each sum in SUMS is the candidate for the default. Prints the mean AUROC and the least one of each candidate,
and writes docs/results/score_choice.json. It has no bound: docs/decisions/0003-anomaly-score.md has the conclusion.

Shapes: N examples, X the axes of one.
"""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_wine

from benchmarks.anomaly import MODELS, Array, Example, auroc, dataset_of, standardised, training_of
from benchmarks.pipelines import line, write
from remint.models.scores import Scorer
from remint.records import DataSpec
from remint.serving.anomalies.calibration import fit_reference, part_scores
from remint.training.state import TrainingState

FOLDER = Path("/usr/share/datasets/fashion-mnist")
HELD_OUT, NORMAL = (0, 1, 5, 7, 8, 9), (0, 2, 4, 7)
IMAGES, ANOMALIES = 1857, 400  # 70% of the first are 1,300
TABLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vae": (
        {"latent": 12, "hidden": 128, "dropout": 0.05, "likelihood": "gaussian_mixture", "mixtures": 1},
        {"steps": 1500, "learning_rate": 2e-3},
    ),
    "flow": ({"coupling": "affine", "couplings": 8, "hidden": 64, "dropout": 0.2}, {"steps": 600, "learning_rate": 5e-3}),
}
GAN: tuple[dict[str, Any], dict[str, Any]] = (
    {
        "latent": 32,
        "hidden": 256,
        "layers": 3,
        "penalty": 10.0,
        "penalty_final": 0.5,
        "penalty_every": 4,
        "critic_learning_rate": 1.33,
    },
    {"steps": 3000, "learning_rate": 1.5e-3, "ema": 0.998},
)
SEARCHED = 200
SUMS = (
    "likelihood",
    "relative",
    "reconstruction",
    "latent",
    "neighbours",
    "samples",
    "neighbours + likelihood",
    "neighbours + relative",
    "neighbours + samples",
    "neighbours + reconstruction",
    "samples + relative",
    "neighbours + relative + latent",
    "neighbours + relative + reconstruction",
    "critic",
    "neighbours + critic",
    "neighbours + samples + critic",
)


def fashion() -> Iterator[tuple[str, Example]]:
    """Yield the divisions of Fashion-MNIST."""
    with gzip.open(FOLDER / "train-images-idx3-ubyte.gz") as images, gzip.open(FOLDER / "train-labels-idx1-ubyte.gz") as labels:
        x_NHW = np.frombuffer(images.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        y_N = np.frombuffer(labels.read(), np.uint8, offset=8)
    means_N88 = np.pad(x_NHW, ((0, 0), (2, 2), (2, 2))).reshape(-1, 8, 4, 8, 4).mean((2, 4))
    order_N = np.random.default_rng(0).permutation(len(y_N))
    x_NX, y_N = np.rint(means_N88 * (16 / 255)).astype(np.uint8)[order_N, None], y_N[order_N]
    spec = DataSpec(shape=(1, 8, 8), levels=17)
    for y in HELD_OUT:
        yield "fashion, one class held out", (x_NX[y_N != y][:IMAGES], x_NX[y_N == y][:ANOMALIES], spec)
    for y in NORMAL:
        yield "fashion, one class normal", (x_NX[y_N == y][:IMAGES], x_NX[y_N != y][:ANOMALIES], spec)


def tables() -> Iterator[tuple[str, Example]]:
    wine, cancer = load_wine(), load_breast_cancer()
    for y in range(3):
        yield "wine", rows(wine.data, wine.target == y)
    yield "cancer", rows(cancer.data, cancer.target == 0)


def rows(x_ND: Array, anomaly_N: Array) -> Example:
    return standardised(x_ND[~anomaly_N], x_ND[anomaly_N], tuple(map(str, range(x_ND.shape[1]))), {})


def measured(data: str, example: Example) -> Iterator[dict[str, Any]]:
    """Yield the AUROC of each candidate that a family has."""
    usual_NX, other_NX, spec = example
    dataset, normal_NX = dataset_of(usual_NX, spec, seed=0)
    for family, (model, training) in (TABLES if spec.is_table else {**MODELS, "gan": GAN}).items():
        state = training_of(family, dataset, model, {**training, "seed": 0})
        trained = state.served()
        scorer = Scorer(trained, spec, fit_reference(trained, spec, dataset.train, dataset.validation))
        if family == "gan":
            validation, *parts = (
                gan_scores(state, scorer, x_NX[:SEARCHED]) for x_NX in (np.asarray(dataset.validation.x_NX), normal_NX, other_NX)
            )
            scale = {name: (each.mean(), each.std()) for name, each in validation.items()}
        else:
            parts = [{name: each.numpy() for name, each in part_scores(scorer, x_NX).items()} for x_NX in (normal_NX, other_NX)]
            scale = dict(zip(parts[0], scorer.reference["statistics_2S"].numpy().T, strict=True))
        standard = [{name: (each - scale[name][0]) / scale[name][1] for name, each in part.items()} for part in parts]
        for candidate in (each for each in SUMS if {*each.split(" + ")} <= standard[0].keys()):
            normal_N, other_M = (np.sum([each[name] for name in candidate.split(" + ")], 0) for each in standard)
            yield {"data": data, "family": family, "score": candidate, "auroc": auroc(normal_N, other_M)}


def gan_scores(state: TrainingState, scorer: Scorer, x_NX: Array) -> dict[str, Array]:
    """Return the scores that a GAN has, and those by its critic and by a search in latent space."""
    model: Any = scorer.model
    critic = state.critic
    assert critic is not None
    critic.load_state_dict(state.served_critic())
    x = torch.from_numpy(np.ascontiguousarray(x_NX))
    again_NX = model.decode(model.encode(x.float(), None), None)
    with torch.no_grad():
        score_N = critic.eval()(model.space.encode(x.float()), None)
        found = {**part_scores(scorer, x_NX), "critic": -score_N, "reconstruction": scorer.reconstruction(x, again_NX)}
    return {name: each.double().numpy() for name, each in found.items()}


def main() -> int:
    os.environ["REMINT_EVENTS"] = os.devnull  # a table is printed, not progress
    found: list[dict[str, Any]] = []
    for data, example in (*tables(), *fashion()):
        found += measured(data, example)
        print(f"measured: {data}", flush=True)
    results = []
    for data, family, score in dict.fromkeys((row["data"], row["family"], row["score"]) for row in found):
        values = [row["auroc"] for row in found if (row["data"], row["family"], row["score"]) == (data, family, score)]
        results.append({"data": data, "family": family, "score": score, "mean": float(np.mean(values)), "least": min(values)})
        print(line(results[-1]))
    print(f"written: {write('score_choice', results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
