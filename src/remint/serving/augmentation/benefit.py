"""Whether synthetic examples help a classifier: plain classifiers trained with and without them, judged on real examples.

For each of SEEDS seeds a part of the given examples of each class is held out, the rest trains a classifier, and the rest with
its scarce classes filled up trains another. The score is the balanced accuracy: the mean over classes of the share that is
recognised. The interval covers the choice of the parts and the classifier's initial weights, not the training of the model.
A model that was itself trained on the given examples has seen the held-out ones too: the result then favours it.

Shapes: N examples, D coordinates, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from remint.errors import UserError
from remint.evaluation.intervals import over_draws
from remint.evaluation.neighbours import coordinates
from remint.records import Record
from remint.serving.augmentation.scarce import classes_in, drawn, picked
from remint.serving.inputs import Examples
from remint.serving.model import ServedModel

SEEDS = 5
HELD_OUT = 0.3  # share of the examples of each class
MOST = 5_000  # given examples that are used: the time of a support vector machine grows with their square
MOST_FILLED = 20_000  # examples after filling up
HIDDEN = 128

Array = np.ndarray[Any, Any]


class Benefit(Record):
    """Balanced accuracy of one kind of classifier, without and with synthetic examples: means over the seeds."""

    classifier: str
    without: float
    augmented: float
    low: float  # limits of the 95% interval of the difference
    high: float
    seeds: int

    def text(self) -> str:
        word = "it helps" if self.low > 0 else "it harms" if self.high < 0 else "no effect is shown"
        gain = f"{100 * (self.augmented - self.without):+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{self.classifier}: balanced accuracy {self.without:.3f} without, {self.augmented:.3f} with: {gain}: {word}"


def measure(served: ServedModel, examples: Examples, per_class: int, seed: int = 0) -> tuple[Benefit, ...]:
    """Return the benefit of filling up the classes of ``examples`` to ``per_class``, for each kind of classifier.

    Raises UserError if fewer than two classes have two examples.
    """
    chosen_N = np.sort(np.random.default_rng(seed).permutation(len(examples))[:MOST])
    x_ND = coordinates(picked(examples.x_NX, chosen_N), served.spec).numpy()
    y_N = classes_in(examples)[chosen_N]
    counts_K = np.bincount(y_N, minlength=served.spec.classes)
    if (counts_K >= 2).sum() < 2:
        raise UserError("the input has too few classes with two examples or more: a classifier cannot be judged on it")
    per_class = min(per_class, MOST_FILLED // len(counts_K))
    pool_K = np.where(counts_K > 0, np.maximum(per_class - (counts_K * (1 - HELD_OUT)).astype(int) + 1, 0), 0)
    parts = [(coordinates(x_BX, served.spec).numpy(), y_B) for x_BX, y_B in drawn(served, pool_K, seed)]
    pool_MD, pool_M = np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts if y is not None])
    scores: dict[str, list[tuple[float, float]]] = {}
    for number in range(SEEDS):
        test_N = _held_out(y_N, np.random.default_rng([seed, number]))
        fill_M = _fill(y_N[~test_N], pool_M, per_class)
        for name, classifier in classifiers(number).items():
            both = [
                _score(classifier, train_ND, train_N, x_ND[test_N], y_N[test_N])
                for train_ND, train_N in (
                    (x_ND[~test_N], y_N[~test_N]),
                    (np.concatenate([x_ND[~test_N], pool_MD[fill_M]]), np.concatenate([y_N[~test_N], pool_M[fill_M]])),
                )
            ]
            scores.setdefault(name, []).append((both[0], both[1]))
    return tuple(_benefit(name, np.array(each)) for name, each in scores.items())


def _benefit(name: str, scores_S2: Array) -> Benefit:
    without, augmented = scores_S2.mean(0)
    low, high = over_draws(scores_S2[:, 1] - scores_S2[:, 0])
    return Benefit(classifier=name, without=without, augmented=augmented, low=low, high=high, seeds=len(scores_S2))


def _held_out(y_N: Array, generator: np.random.Generator) -> Array:
    """Return which examples are held out, bool (N,): a share of each class, one at least of a class with two."""
    test_N = np.zeros(len(y_N), dtype=bool)
    for y in np.unique(y_N):
        places = generator.permutation(np.flatnonzero(y_N == y))
        if len(places) > 1:
            test_N[places[: max(1, round(HELD_OUT * len(places)))]] = True
    return test_N


def _fill(train_N: Array, pool_M: Array, per_class: int) -> Array:
    """Return the indices of the synthetic examples that fill up the classes of a training part."""
    needed = {y: max(0, per_class - int((train_N == y).sum())) for y in np.unique(pool_M).tolist()}
    return np.concatenate([np.flatnonzero(pool_M == y)[:count] for y, count in needed.items()])


def classifiers(seed: int) -> dict[str, Any]:
    """Return the classifiers by name, not yet fitted."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    network = MLPClassifier((HIDDEN, HIDDEN), early_stopping=False, max_iter=100, random_state=seed)
    return {
        f"network of 2 x {HIDDEN}": make_pipeline(StandardScaler(), network),
        "support vector machine": make_pipeline(StandardScaler(), SVC()),
    }


def _score(classifier: Any, x_ND: Array, y_N: Array, test_ND: Array, test_N: Array) -> float:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import balanced_accuracy_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a plain classifier: a fixed number of rounds
        classifier.fit(x_ND, y_N)
    return float(balanced_accuracy_score(test_N, classifier.predict(test_ND)))
