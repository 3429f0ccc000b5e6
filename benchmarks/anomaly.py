"""Measure anomaly scores: digits held out in turn, attacks in a log of events, and faults in a signal of several sensors.

    python -m benchmarks.anomaly [digits | events | sensors ...]

digits   ten trainings of each family, each without one digit, which is then told from held-out digits of the other classes
events   logins with 300 users, 60 hosts and 80 ports (categories), bytes, durations, hours and failures; attacks: a stolen
         account, a port scan, guessed passwords, and data that leave
sensors  windows of 16 steps of 6 coupled sensors, as rows of 96 numbers; faults: a stuck sensor, an offset, noise, and a sensor
         that shows another window, whose values are all usual

Every model is a real training (training/train.py), of normal examples only, with short settings that fit all three. AUROC is
the probability that an anomaly has a higher score than a normal example. Beside the scores of models/scores.py stand
scikit-learn's IsolationForest, the reconstruction error of 20 principal components, the 5 nearest neighbours in data space,
and PyOD's ECOD and kNN (pip install -e '.[bench]'; left out if it is not installed). Categories are one-hot for them; a second
forest has their codes as numbers.

Bounds: on digits a mean AUROC of the default score of at least 0.96 (VAE) and 0.93 (flow), of at least 0.80 for each digit,
and above IsolationForest and PCA; on events and sensors above IsolationForest. Prints a table, writes
docs/results/anomaly.json. Ends with status 1 if a bound is missed.

Shapes: N examples, X the axes of one, F features.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from benchmarks.pipelines import line, write
from remint.data.arrays import Dataset, Split
from remint.distributed.machine import deterministic
from remint.distributed.world import World
from remint.models.contract import Model
from remint.models.layers import to_unit
from remint.models.row_likelihoods import RowFeatures
from remint.models.scores import DEFAULT, Scorer
from remint.records import Column, DatasetVersion, DataSpec
from remint.serving.anomalies.calibration import fit_reference, part_scores
from remint.settings.recipe import MODEL_SETTINGS, Recipe, TrainingSettings
from remint.training import train
from remint.training.checkpoint import Checkpoints
from remint.training.state import TrainingState

Array = np.ndarray[Any, Any]
Example = tuple[Array, Array, DataSpec]  # normal examples, anomalies, and their form

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vae": ({"latent": 16, "hidden": 256, "layers": 2, "dropout": 0.2, "kl_warmup": 0.2}, {"steps": 1200, "learning_rate": 2e-3}),
    "flow": ({"couplings": 6, "hidden": 128, "bins": 6, "dropout": 0.1}, {"steps": 600, "learning_rate": 2e-3}),
}
SHARES = (0.7, 0.1)  # of the normal examples, for training and validation; the others are told from the anomalies
BOUNDS = {"vae": 0.96, "flow": 0.93}
LEAST_OF_A_DIGIT = 0.80
FOREST, CODES, COMPONENTS, NEAREST = (
    "isolation forest",
    "isolation forest, codes",
    "20 principal components",
    "5 nearest neighbours",
)
USERS, HOSTS, PORTS, ROLES = 300, 60, 80, 12
STEPS, SENSORS = 16, 6


def digits() -> Iterator[tuple[str, Example]]:
    """Yield each digit as the anomaly."""
    data = load_digits()
    x_NX = data.images.astype(np.uint8)[:, None]
    for digit in range(10):
        yield f"digit {digit}", (x_NX[data.target != digit], x_NX[data.target == digit], DataSpec(shape=(1, 8, 8), levels=17))


def events() -> Iterator[tuple[str, Example]]:
    """Yield a log of events. A user has a role; a role has its hosts, ports, hours and volumes."""
    rng = np.random.default_rng(0)
    role_U = rng.integers(ROLES, size=USERS)
    hosts, ports = rng.dirichlet(np.full(HOSTS, 0.05), ROLES), rng.dirichlet(np.full(PORTS, 0.05), ROLES)
    hour_R, volume_RP = rng.uniform(6, 18, ROLES), rng.normal(8, 2, (ROLES, PORTS))

    def normal(count: int) -> Array:
        user = rng.choice(USERS, count, p=rng.permutation(1 / np.arange(1, USERS + 1)) / (1 / np.arange(1, USERS + 1)).sum())
        role = role_U[user]
        host = np.array([rng.choice(HOSTS, p=hosts[each]) for each in role])
        port = np.array([rng.choice(PORTS, p=ports[each]) for each in role])
        sent = volume_RP[role, port] + rng.normal(0, 0.7, count)
        received = sent + rng.normal(1, 0.5, count)
        duration = 0.5 * sent + rng.normal(0, 0.5, count)
        return np.stack(
            [user, host, port, (hour_R[role] + rng.normal(0, 2, count)) % 24, sent, received, duration, rng.poisson(0.1, count)],
            1,
        )

    usual, attacks = normal(7000), normal(240)
    stolen, scan, guessed, leak = (slice(at, at + 60) for at in range(0, 240, 60))
    attacks[stolen, :4] = np.stack([rng.integers(size, size=60) for size in (USERS, HOSTS, PORTS, 24)], 1)
    attacks[scan, 2], attacks[scan, 4:7] = rng.integers(PORTS, size=60), rng.normal(1, 0.3, (60, 3))
    attacks[guessed, 7] = rng.poisson(3, 60) + 1
    attacks[leak, 4] += rng.normal(4, 0.5, 60)
    names = ("user", "host", "port", "hour", "sent", "received", "duration", "failures")
    sizes = dict(zip(names, (USERS, HOSTS, PORTS), strict=False))
    yield "events", standardised(usual, attacks, names, sizes)


def sensors() -> Iterator[tuple[str, Example]]:
    """Yield windows of coupled sensors: two hidden oscillations with a random phase, mixed, lagged and noisy."""
    rng = np.random.default_rng(1)
    mix, lag = rng.normal(size=(2, SENSORS)), rng.uniform(0, 1.5, (2, SENSORS))

    def windows(count: int) -> Array:
        phase, speed = rng.uniform(0, 2 * np.pi, (2, count, 1, 1)), rng.normal([[0.4], [0.9]], 0.03, (2, count))[:, :, None, None]
        load = rng.normal(1, 0.15, (2, count, 1, 1))
        wave = load * np.sin(phase + speed * np.arange(STEPS)[:, None] + lag[:, None, None])
        return np.einsum("kctd,kd->ctd", wave, mix) + rng.normal(0, 0.1, (count, STEPS, SENSORS))

    usual, faults = windows(6000), windows(240)
    for at, fault in enumerate(faults):
        sensor, kind = rng.integers(SENSORS), at % 4
        if kind == 0:
            fault[:, sensor] = fault[0, sensor] + rng.normal(0, 0.02, STEPS)
        elif kind == 1:
            fault[:, sensor] += 0.8 * rng.choice([-1, 1])
        elif kind == 2:
            fault[:, sensor] += rng.normal(0, 0.5, STEPS)
        else:
            fault[:, sensor] = windows(1)[0, :, sensor]
    names = tuple(f"{sensor}{step}" for step in range(STEPS) for sensor in "abcdef")
    yield "sensors", standardised(usual.reshape(len(usual), -1), faults.reshape(len(faults), -1), names, {})


def standardised(usual_ND: Array, other_ND: Array, names: tuple[str, ...], categories: dict[str, int]) -> Example:
    """Return rows in the form of records.DataSpec. ``categories``: number of categories of the columns that have them."""
    mean_D, scale_D = usual_ND.mean(0), usual_ND.std(0)
    numeric_D = np.array([name not in categories for name in names])
    columns = tuple(
        Column(name=name, mean=float(mean), scale=float(scale))
        if name not in categories
        else Column(name=name, categories=tuple(map(str, range(categories[name]))))
        for name, mean, scale in zip(names, mean_D, scale_D, strict=True)
    )
    rows = [np.where(numeric_D, (x_ND - mean_D) / scale_D, x_ND).astype(np.float32) for x_ND in (usual_ND, other_ND)]
    return rows[0], rows[1], DataSpec(shape=(len(names),), columns=columns)


def dataset_of(usual_NX: Array, spec: DataSpec, seed: int) -> tuple[Dataset, Array]:
    """Return the dataset of a training, and the normal examples that have no part in it."""
    x_NX = usual_NX[np.random.default_rng(seed).permutation(len(usual_NX))]
    ends = np.cumsum([round(share * len(x_NX)) for share in SHARES])
    training, validation, others = np.split(x_NX, ends)
    version = DatasetVersion(name="anomaly", source=__file__, raw_sha256="", spec=spec, split={}, counts={}, files={})
    return Dataset(version, Split(training, None), Split(validation, None), Split(validation, None)), others


def fitted(family: str, dataset: Dataset, model: dict[str, Any], training: dict[str, Any]) -> Model:
    """Return a model of the training split."""
    return training_of(family, dataset, model, training).served()


def training_of(family: str, dataset: Dataset, model: dict[str, Any], training: dict[str, Any]) -> TrainingState:
    """Return a finished training."""
    recipe = Recipe(
        dataset="anomaly",
        family=family,
        model=MODEL_SETTINGS[family].model_validate(model),
        training=TrainingSettings.model_validate(
            {"batch_size": 64, "ema": 0.99, "validate_every": 100, "checkpoint_every": 1_000_000, **training}
        ),
    )
    with tempfile.TemporaryDirectory() as folder, deterministic(threads=1):
        checkpoints = Checkpoints(Path(folder), "anomaly")
        with checkpoints.held("benchmarks/anomaly.py"):
            return train.fit(recipe, dataset, World(0, 1, torch.device("cpu")), checkpoints, lambda: False)


def peers(dataset: Dataset, spec: DataSpec) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    """Yield the name of each other score, with its function of examples."""

    def features(x_NX: Array) -> Array:
        x = torch.from_numpy(np.asarray(x_NX)).float()
        return np.asarray(RowFeatures(spec)(x) if spec.is_table else to_unit(x.flatten(1), spec.levels))

    train_NF = features(dataset.train.x_NX)
    forest, nearest = IsolationForest(random_state=0).fit(train_NF), NearestNeighbors(n_neighbors=5).fit(train_NF)
    components = PCA(20).fit(train_NF)
    yield FOREST, lambda x_NX: -forest.score_samples(features(x_NX))
    if spec.is_table:
        codes = IsolationForest(random_state=0).fit(dataset.train.x_NX)
        yield CODES, lambda x_NX: -codes.score_samples(x_NX)
    yield (
        COMPONENTS,
        lambda x_NX: ((components.inverse_transform(components.transform(features(x_NX))) - features(x_NX)) ** 2).sum(1),
    )
    yield NEAREST, lambda x_NX: nearest.kneighbors(features(x_NX))[0].mean(1)
    try:
        from pyod.models.ecod import ECOD
        from pyod.models.knn import KNN
    except ImportError:
        return
    ecod, knn = ECOD().fit(train_NF), KNN(method="mean").fit(train_NF)
    yield "PyOD's ECOD", lambda x_NX: ecod.decision_function(features(x_NX))
    yield "PyOD's kNN", lambda x_NX: knn.decision_function(features(x_NX))


def auroc(normal_N: Array, other_M: Array) -> float:
    return float(roc_auc_score(np.repeat([0, 1], [len(normal_N), len(other_M)]), np.concatenate([normal_N, other_M])))


def measured(data: str, example: Example, seed: int) -> Iterator[dict[str, Any]]:
    usual_NX, other_NX, spec = example
    dataset, normal_NX = dataset_of(usual_NX, spec, seed)
    for name, of in peers(dataset, spec):
        yield {"data": data, "model": "", "score": name, "auroc": auroc(of(normal_NX), of(other_NX))}
    for family, (model, training) in MODELS.items():
        began = time.process_time()
        trained = fitted(family, dataset, model, {**training, "seed": seed})
        seconds = time.process_time() - began
        scorer = Scorer(trained, spec, fit_reference(trained, spec, dataset.train, dataset.validation))
        normal, other = part_scores(scorer, normal_NX), part_scores(scorer, other_NX)
        for name in scorer.names:
            found = auroc(scorer.score(name, normal).numpy(), scorer.score(name, other).numpy())
            yield {"data": data, "model": family, "score": name, "auroc": found, "cpu_seconds": seconds}


def missed(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each bound that is missed."""

    def values(model: str, score: str, digits_only: bool) -> list[float]:
        chosen = (row for row in rows if (row["model"], row["score"]) == (model, score))
        return [row["auroc"] for row in chosen if row["data"].startswith("digit") == digits_only]

    for family, least in BOUNDS.items():
        of_digits = values(family, DEFAULT, True)
        if of_digits and np.mean(of_digits) < max(least, *(np.mean(values("", peer, True)) for peer in (FOREST, COMPONENTS))):
            yield f"digits, {family}: a mean AUROC of {np.mean(of_digits):.3f}"
        if of_digits and min(of_digits) < LEAST_OF_A_DIGIT:
            yield f"digits, {family}: an AUROC of {min(of_digits):.3f} for one digit"
        forests = zip(values("", FOREST, False), values("", CODES, False), strict=True)
        for ours, both in zip(values(family, DEFAULT, False), forests, strict=True):
            if ours <= max(both):
                yield f"{family}: {ours:.3f}, and isolation forest {max(both):.3f}"


def main(*parts: str) -> int:
    os.environ["REMINT_EVENTS"] = os.devnull  # a table is printed, not progress
    rows: list[dict[str, Any]] = []
    for part in parts or ("digits", "events", "sensors"):
        for seed, (data, example) in enumerate({"digits": digits, "events": events, "sensors": sensors}[part]()):
            for row in measured(data, example, seed):
                rows.append(row)
                print(line(row), flush=True)
    for model, score in dict.fromkeys((row["model"], row["score"]) for row in rows if row["data"].startswith("digit")):
        of_digits = [
            row["auroc"] for row in rows if row["data"].startswith("digit") and (row["model"], row["score"]) == (model, score)
        ]
        print(f"digits, {model or 'peer'}, {score}: mean {np.mean(of_digits):.3f}, least {min(of_digits):.3f}")
    if not parts:
        print(f"written: {write('anomaly', rows)}")
    misses = list(missed(rows))
    print("\n".join(f"MISSED  {miss}" for miss in misses) or "every bound is held")
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
