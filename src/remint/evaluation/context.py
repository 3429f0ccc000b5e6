"""Inputs of a metric (EvaluationContext) and its result (Measurement).

A likelihood is a mean over held-out examples: all, or ``settings.examples`` of them that the seed chooses. A metric of
samples is a mean over repeated draws of n samples. The seed chooses n held-out examples, and all draws are compared with
them. Each draw is sampled once and its features are computed once; all metrics share them. N processes split the blocks of
samples, features and held-out examples among them and exchange the results: no value depends on N.

Shapes: N values, B block, X the axes of one example (C, H, W of an image, D of a table's row), D features, J groups.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.data.arrays import Dataset
from remint.distributed.world import SINGLE_PROCESS, World
from remint.errors import DataError, RunError, SettingsError
from remint.evaluation import cache, intervals
from remint.evaluation.features import Extractor
from remint.evaluation.progress import Progress
from remint.models.contract import CanSample, standard_normal
from remint.records import DataSpec
from remint.runtime import scratch
from remint.settings.catalogue import Features
from remint.settings.judging import EvaluationSettings

BLOCK = 128  # examples per block: noise is seeded by (seed, stream, draw, block), so another size gives other noise
FEATURE_BLOCK = 256  # examples whose features one process computes at a time: whole blocks of every extractor

# Noise streams: one for each use, so that two uses never share noise.
DEQUANTISATION, IMPORTANCE, DISTANCE, PICTURE, AGREEMENT, EXAMPLES, PROBE = range(7)

Array = np.ndarray[Any, Any]
AnomalyScores = Callable[[object, Array], tuple[Array, Array]]  # of a model and held-out places: see pipelines/anomalies.py


class ArrayCache:
    """Arrays that are computed once and kept in files, because twenty draws of thousands of features may not fit in memory."""

    def __init__(self) -> None:
        held = ExitStack()
        self._folder = held.enter_context(scratch.folder())
        weakref.finalize(self, held.close)
        self._paths: dict[Hashable, Path] = {}

    def get(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """Return the array of ``key``. The first call computes it with ``make``."""
        if key not in self._paths:
            made = make()  # may itself add an array: take the file's number after this call
            path = self._folder / f"{len(self._paths)}.npy"
            np.save(path, made, allow_pickle=False)
            self._paths[key] = path
        array: Array = np.load(self._paths[key], allow_pickle=False)
        return array


def judged_examples(held_out: int, most: int, seed: int) -> Array:
    """Return the indices of at most ``most`` held-out examples, chosen by the seed, in ascending order, int64 (N,)."""
    return np.sort(np.random.default_rng([EXAMPLES, seed]).permutation(held_out)[:most])


@dataclass(frozen=True)
class EvaluationContext:
    """Dataset version, feature extractors by name and settings of an evaluation."""

    dataset: Dataset
    extractors: Mapping[str, Extractor]
    settings: EvaluationSettings
    world: World = SINGLE_PROCESS
    anomaly_scores: AnomalyScores | None = None  # for the metrics of anomalies.py
    metrics: frozenset[str] = frozenset()  # the chosen ones, for a pass that can measure more than one
    progress: Progress = field(default_factory=Progress, repr=False, compare=False)
    _cache: ArrayCache = field(default_factory=ArrayCache, init=False, repr=False, compare=False)

    @property
    def draws(self) -> Iterator[int]:
        """The numbers of the repeated draws. After each the progress is reported."""
        return self.progress.over(range(self.settings.draws))

    @cached_property
    def judged(self) -> Array:
        """Indices of the held-out examples of a likelihood, in ascending order, int64 (N,): the same for every model."""
        return judged_examples(len(self.dataset.held_out), self.settings.examples, self.settings.seed)

    def extractor(self, features: Features) -> Extractor:
        """Return the extractor of these features. Raises SettingsError if no chosen metric declares them."""
        if features not in self.extractors:
            raise SettingsError(f"a metric uses features '{features}', and its FACTS do not declare them: set features there")
        return self.extractors[features]

    def size(self, metric: str, least: int) -> int:
        """Return n: settings.samples, limited to the number of held-out and of training examples.

        Raises DataError if n is below ``least``, the number that the metric needs.
        """
        n = min(self.settings.samples, len(self.dataset.held_out), len(self.dataset.train))
        if n < least:
            name = self.dataset.version.name
            raise DataError(
                f"{metric} needs {least} examples on each side, but only {n} are available: use more data, or raise "
                f"datasets.{name}.split.held_out and evaluation.samples in params.yaml"
            )
        return n

    def reference(self) -> Array:
        """Return the indices of the n held-out examples that samples are compared with, in order, int64 (N,)."""
        return self._chosen("held_out", self.settings.seed)

    def real(self, features: Features) -> Array:
        """Return the features f_ND of the reference."""
        return self._cache.get(features, lambda: self._features_of(features, "held_out", self.reference()))

    def training(self, features: Features, draw: int) -> Array:
        """Return the features f_ND of n different training examples; each draw has its own choice."""
        return self._features_of(features, "train", self._chosen("train", self.settings.seed, draw))

    def sampled(self, model: CanSample, draw: int) -> Array:
        """Return the samples x_NX of one draw."""
        n, seed = self.size("a metric of samples", 1), self.settings.seed
        # The key is the model itself, not its id(): an id is used again after its object is deleted.
        return self._cache.get(
            (model, draw), lambda: samples(model, self.dataset.spec, n, seed, DISTANCE, draw, world=self.world)
        )

    def drawn(self, features: Features, model: CanSample, draw: int) -> Array:
        """Return the features f_ND of the samples of one draw. Raises RunError if one is not finite."""

        def make() -> Array:
            f_ND = self._features(features, self.sampled(model, draw))
            return _finite_rows(f_ND, f"features '{features}' of", "samples", "this model cannot be judged, train again")

        return self._cache.get((model, draw, features), make)

    def _chosen(self, split: str, *seed: int) -> Array:
        """Return the indices of n different examples of a split, in ascending order."""
        count = len(getattr(self.dataset, split))
        chosen_N = np.random.default_rng([DISTANCE, *seed]).permutation(count)
        return np.sort(chosen_N[: self.size("a metric of samples", 1)])

    def _features(self, features: Features, x_NX: Array) -> Array:
        def make(number: int) -> Tensor:
            return torch.from_numpy(self.extractor(features)(x_NX[number * FEATURE_BLOCK : (number + 1) * FEATURE_BLOCK]))

        return self.world.blocks(len(x_NX), FEATURE_BLOCK, make).numpy()

    def _features_of(self, features: Features, split: str, chosen_N: Array) -> Array:
        extractor, x_NX = self.extractor(features), getattr(self.dataset, split).x_NX

        def make() -> Array:
            f_ND = self._features(features, np.array(x_NX[chosen_N]))
            wrong = "this extractor cannot be used here, choose another"
            return _finite_rows(f_ND, f"features '{features}' of", f"{split} examples", wrong)

        return cache.features(self.dataset.version.digest, split, chosen_N, extractor, make, self.world)

    def fingerprint(self, **how: Any) -> dict[str, Any]:
        """Return the fingerprint: data, seed and ``how``. Two values are comparable only if their fingerprints agree."""
        return {"dataset": self.dataset.version.digest, "split": "held_out", "seed": self.settings.seed, **how}

    def measured_in(self, features: Features, **how: Any) -> dict[str, Any]:
        """Return the fingerprint entries of an extractor, and ``how``."""
        extractor = self.extractor(features)
        return {"extractor": extractor.sha256, "resize": extractor.resize, **how}

    def over_held_out(self, make: Callable[[int, Tensor, Tensor | None], Tensor]) -> Tensor:
        """Apply ``make`` to each block of the ``judged`` held-out examples and return all results in order.

        ``make`` takes the block's number, its x_BX, and its labels y_B or None.
        """
        held_out, turns = self.dataset.held_out, math.ceil(len(self.judged) / (BLOCK * self.world.size))
        with self.progress.loop(turns) as tick:

            def of_block(number: int) -> Tensor:
                chosen_B = self.judged[number * BLOCK : (number + 1) * BLOCK]
                y_B = None if held_out.y_N is None else torch.from_numpy(np.array(held_out.y_N[chosen_B]))
                made = make(number, torch.from_numpy(np.array(held_out.x_NX[chosen_B])), y_B)
                tick()
                return made

            return self.world.blocks(len(self.judged), BLOCK, of_block)


@dataclass(frozen=True)
class Measurement:
    """The values of one metric, one per example or one per repeated draw. The metric is their mean."""

    values_N: Array  # float64
    n: int  # examples, or samples of one draw
    low: float  # limits of the 95% interval of the mean
    high: float
    fingerprint: dict[str, Any] = field(default_factory=dict)
    reference_J: Array | None = None  # jackknife pseudo-values over groups of the reference, as deviations from their mean

    by_class: dict[int, Measurement] = field(default_factory=dict)  # the same over the examples of each class
    repeats: int = 0  # samples of each example that a rule of the fingerprint chose for this model; 0: no such rule

    @classmethod
    def over_examples(
        cls, values_N: Array, context: EvaluationContext, y_N: Array | None = None, repeats: int = 0, **how: Any
    ) -> Measurement:
        """Return the measurement of one value per judged held-out example; with labels ``y_N`` also by class."""
        low, high = intervals.over_examples(values_N, context.settings.seed)
        fingerprint = context.fingerprint(**how, n=len(values_N), interval="bootstrap over examples")
        classes = [] if y_N is None else np.unique(y_N).tolist()
        by_class = {y: cls.over_examples(values_N[y_N == y], context, None, repeats, **how, of_class=y) for y in classes}
        return cls(values_N, len(values_N), low, high, fingerprint, by_class=by_class, repeats=repeats)

    @classmethod
    def over_draws(
        cls,
        values_N: Array,
        n: int,
        context: EvaluationContext,
        by_class: dict[int, Measurement] | None = None,
        reference_J: Array | None = None,
        **how: Any,
    ) -> Measurement:
        """Return the measurement of one value per draw of ``n`` samples; ``reference_J``: the interval covers the reference."""
        low, high = intervals.over_draws(values_N, reference_J)
        covers = (
            "t over draws" if reference_J is None else f"t over draws and over {len(reference_J)} jackknife groups of held-out"
        )
        fingerprint = context.fingerprint(**how, n=n, draws=len(values_N), interval=covers)
        return cls(values_N, n, low, high, fingerprint, reference_J, by_class or {})


@dataclass(frozen=True)
class Metric:
    """The function that measures a metric. Metrics from the same pass over the model share one ``measure``, which runs once."""

    measure: Callable[[Any, EvaluationContext], Mapping[str, Measurement]]  # measurements by metric name
    # Baselines by name, which do not depend on the model.
    context: Mapping[str, Callable[[EvaluationContext], Measurement]] = field(default_factory=dict)


def finite(values_N: Array, metric: str) -> Array:
    """Return the values. Raises RunError, with a count, if any is not finite: no value is ever left out."""
    bad = int((~np.isfinite(values_N)).sum())
    if bad:
        raise RunError(
            f"metric {metric}: {bad} of {len(values_N)} values are not finite: this model cannot be judged, train again"
        )
    return values_N


def _finite_rows(f_ND: Array, what: str, of: str, so: str) -> Array:
    bad = int((~np.isfinite(f_ND).all(axis=1)).sum())
    if bad:
        raise RunError(f"{what} {bad} of {len(f_ND)} {of} are not finite: {so}")
    return f_ND


def samples(
    model: CanSample, spec: DataSpec, count: int, *seed: int, y_N: Array | None = None, world: World = SINGLE_PROCESS
) -> Array:
    """Return ``count`` samples x_NX: a pure function of the model and ``seed``, whose second number is the stream.

    ``y_N``: class of each sample, for a conditional model. Raises RunError if the samples are not examples of ``spec``.
    """

    def make(number: int) -> Tensor:
        at = number * BLOCK
        noise_BN = standard_normal((min(BLOCK, count - at), model.sample_noise), *seed, number)
        return model.sample(noise_BN, None if y_N is None else torch.from_numpy(y_N[at : at + BLOCK]))

    x_NX: Array = world.blocks(count, BLOCK, make).numpy()
    wrong = _wrong_row(x_NX, spec) if spec.is_table else _wrong_image(x_NX, spec)
    if wrong:
        raise RunError(f"the model's samples are not examples of the dataset: {wrong}")
    return x_NX


def _wrong_image(x_NX: Array, spec: DataSpec) -> str | None:
    if x_NX.dtype != np.uint8 or x_NX.shape[1:] != spec.shape or x_NX.max() >= spec.levels:
        return f"{x_NX.dtype} {x_NX.shape[1:]} up to {x_NX.max()}, expected uint8 {spec.shape} below {spec.levels}"
    return None


def _wrong_row(x_ND: Array, spec: DataSpec) -> str | None:
    if x_ND.dtype != np.float32 or x_ND.shape[1:] != spec.shape:
        return f"{x_ND.dtype} {x_ND.shape[1:]}, expected float32 {spec.shape}"
    for column, value_N in zip(spec.columns, x_ND.T, strict=True):
        present_N = value_N[~np.isnan(value_N)] if column.missing else value_N
        bad = int((~np.isfinite(present_N)).sum())
        if bad:
            return f"column '{column.name}' has {bad} of {len(value_N)} values that are not finite"
        if column.categories and not np.isin(present_N, range(len(column.categories))).all():
            return f"column '{column.name}' has values that are not indices of its {len(column.categories)} categories"
    return None
