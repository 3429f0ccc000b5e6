"""Measure calibrated p-values: false alarms, uniformity, and the false discovery rate, for every family.

    python -m benchmarks.calibration [FAMILY ...]

Each family is trained once on digits. 40% of the digits have no part in it; 20 times a random half of them calibrates, and the
other half is scored with the default score.

false alarms    share of the other half with p <= 5%. Bound: the mean over the halves is within 1.96 deviations of 5%, the
                deviation of one half, because all of them share their examples
uniform         100 draws of 100 calibration examples and 100 to score, all fresh samples of the model: two-sample
                Kolmogorov-Smirnov test at 1%, which holds for p-values that share one calibration set. Bound: 97 pass
false ones      batches of 100 of the other half and 20 digits with a quarter of their pixels replaced at random, flagged by
                Benjamini-Hochberg at 10%: share of normal digits among the flagged. Bound: the mean over the halves is at most
                10% plus 1.96 standard errors of the 20 shares. Power: share of the 20 that is flagged

Prints a table, writes docs/results/calibration.json. Ends with status 1 if a bound is missed.

Shapes: N examples, X the axes of one.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from scipy.stats import ks_2samp
from sklearn.datasets import load_digits

from benchmarks import anomaly
from benchmarks.anomaly import Array, fitted
from benchmarks.pipelines import line, write
from remint.data.arrays import Dataset, Split
from remint.models.contract import CanSample
from remint.models.draw import draw
from remint.models.scores import DEFAULT, Scorer
from remint.records import DatasetVersion, DataSpec
from remint.serving.anomalies.calibration import fit_reference, part_scores
from remint.serving.anomalies.conformal import benjamini_hochberg, p_values

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **anomaly.MODELS,
    "vaegan": (
        {"latent": 16, "hidden": 256, "layers": 2, "dropout": 0.1, "adversarial": 4.0},
        {"steps": 1200, "learning_rate": 2e-3},
    ),
    "gan": (
        {"latent": 32, "hidden": 256, "layers": 3, "penalty": 10.0, "penalty_every": 4},
        {"steps": 1500, "learning_rate": 1.5e-3},
    ),
}
SHARES = (0.5, 0.1)  # for training and validation
HALVES, DRAWS, DRAWN = 20, 100, 100
ALPHA, FDR, KS_LEVEL = 0.05, 0.1, 0.01
NORMAL, ANOMALIES, REPLACED = 100, 20, 0.25
SPEC = DataSpec(shape=(1, 8, 8), levels=17)


def digits() -> tuple[Dataset, Array]:
    """Return the digits of a training, and those that have no part in it."""
    x_NX = load_digits().images.astype(np.uint8)[:, None]
    x_NX = x_NX[np.random.default_rng(0).permutation(len(x_NX))]
    training, validation, others = np.split(x_NX, np.cumsum([round(share * len(x_NX)) for share in SHARES]))
    version = DatasetVersion(name="calibration", source=__file__, raw_sha256="", spec=SPEC, split={}, counts={}, files={})
    return Dataset(version, Split(training, None), Split(validation, None), Split(validation, None)), others


def with_noise(x_NX: Array, seed: int) -> Array:
    """Return images with a share of their pixels replaced at random."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(x_NX.shape) < REPLACED, rng.integers(SPEC.levels, size=x_NX.shape), x_NX).astype(np.uint8)


def measured(family: str) -> dict[str, Any]:
    model, training = MODELS[family]
    dataset, unseen_NX = digits()
    trained = fitted(family, dataset, model, training)
    scorer = Scorer(trained, SPEC, fit_reference(trained, SPEC, dataset.train, dataset.validation))

    def scores(x_NX: Array) -> Array:
        found: Array = scorer.score(DEFAULT, part_scores(scorer, x_NX, scorer.needs(DEFAULT))).numpy()
        return found

    normal_N, noisy_N = scores(unseen_NX), scores(with_noise(unseen_NX, 1))
    alarms, false_ones, power = [], [], []
    for half in range(HALVES):
        rng = np.random.default_rng([2, half])
        old, new = np.array_split(rng.permutation(len(normal_N)), 2)
        alarms.append((p_values(normal_N[old], normal_N[new], rng.random(len(new))) <= ALPHA).mean())
        batch_N = np.concatenate([normal_N[new[:NORMAL]], noisy_N[new[NORMAL : NORMAL + ANOMALIES]]])
        flagged_N = benjamini_hochberg(p_values(normal_N[old], batch_N, rng.random(len(batch_N))), FDR)
        false_ones.append(flagged_N[:NORMAL].sum() / max(1, flagged_N.sum()))
        power.append(flagged_N[NORMAL:].mean())
    return {
        "family": family,
        "false_alarms": float(np.mean(alarms)),
        "deviation_of_a_half": float(np.sqrt(ALPHA * (1 - ALPHA) * (1 / len(new) + 1 / (len(old) + 1)))),
        "least": float(min(alarms)),
        "most": float(max(alarms)),
        "uniform": uniform(trained, scores),
        "false_ones": float(np.mean(false_ones)),
        "standard_error": float(np.std(false_ones, ddof=1) / np.sqrt(HALVES)),
        "power": float(np.mean(power)),
        "calibrated": len(old),
    }


def uniform(trained: Any, scores: Any) -> int:
    """Return the number of draws whose p-values pass as uniform."""
    assert isinstance(trained, CanSample)
    x_NX, _ = draw(trained, SPEC, [(3, index) for index in range(2 * DRAWS * DRAWN)])
    score_DN = scores(x_NX).reshape(DRAWS, 2 * DRAWN)
    return sum(bool(ks_2samp(each[:DRAWN], each[DRAWN:]).pvalue > KS_LEVEL) for each in score_DN)


def missed(row: dict[str, Any]) -> list[str]:
    found = []
    if abs(row["false_alarms"] - ALPHA) > 1.96 * row["deviation_of_a_half"]:
        found.append(f"{row['family']}: {row['false_alarms']:.3f} false alarms at {ALPHA}")
    if row["uniform"] < 97:
        found.append(f"{row['family']}: {row['uniform']} of {DRAWS} draws are uniform")
    if row["false_ones"] > FDR + 1.96 * row["standard_error"]:
        found.append(f"{row['family']}: {row['false_ones']:.3f} of the flagged are normal at an FDR of {FDR}")
    return found


def main(*families: str) -> int:
    os.environ["REMINT_EVENTS"] = os.devnull  # a table is printed, not progress
    rows = []
    for family in families or MODELS:
        rows.append(measured(family))
        print(line(rows[-1]), flush=True)
    if not families:
        print(f"written: {write('calibration', rows)}")
    misses = [miss for row in rows for miss in missed(row)]
    print("\n".join(f"MISSED  {miss}" for miss in misses) or "every bound is held")
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
