"""``class_agreement``: share of a conditional model's samples that a classifier assigns to the requested class.

The classifier is the dataset's own feature extractor. Higher is better.

Shapes: N samples, M draws.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from remint.errors import SettingsError
from remint.evaluation.context import AGREEMENT, EvaluationContext, Measurement, Metric, samples
from remint.models.contract import CanSample


def agreement(model: CanSample, context: EvaluationContext) -> Mapping[str, Measurement]:
    """Return ``class_agreement``, over all classes and by class. Each draw has equally many samples of each class.

    Raises SettingsError if the model is not conditional or the extractor is not a classifier.
    """
    if not getattr(model, "conditional", False):
        raise SettingsError("class_agreement needs a model with conditional: true: set it, or remove the metric")
    extractor = context.extractor("domain")
    if extractor.classify is None:
        raise SettingsError("class_agreement needs images with labels and a classifier as feature extractor: remove the metric")
    spec, settings = context.dataset.spec, context.settings
    each = max(1, settings.samples // spec.classes)
    asked_N = np.repeat(np.arange(spec.classes), each)
    hit_MN = np.empty((settings.draws, len(asked_N)))
    for draw in context.draws:
        x_NX = samples(model, spec, len(asked_N), settings.seed, AGREEMENT, draw, y_N=asked_N, world=context.world)
        hit_MN[draw] = extractor.classify(x_NX) == asked_N
    how = context.measured_in("domain")
    by_class = {
        y: Measurement.over_draws(hit_MN[:, asked_N == y].mean(axis=1), each, context, **how, of_class=y)
        for y in range(spec.classes)
    }
    return {"class_agreement": Measurement.over_draws(hit_MN.mean(axis=1), len(asked_N), context, by_class=by_class, **how)}


METRICS = {"class_agreement": Metric(agreement)}
