"""Evaluation of one trained model on one dataset version. Every number has a fingerprint of its measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from remint.data.arrays import Dataset
from remint.distributed.world import SINGLE_PROCESS, World
from remint.errors import DataError, RunError, SettingsError
from remint.evaluation import extractors, representation, translation
from remint.evaluation.context import AnomalyScores, EvaluationContext, Measurement, Metric
from remint.evaluation.evidence import ON_CALIBRATION, Evidence
from remint.evaluation.exhibits import LIKELIHOODS
from remint.evaluation.metrics import PROTOCOLS, metric_of
from remint.evaluation.progress import Progress
from remint.models.bundle import load_model
from remint.models.contract import Model
from remint.records import EvaluationReport, MetricValue, TrainedModel
from remint.settings import plugins
from remint.settings.catalogue import Facts
from remint.settings.judging import EvaluationSettings


def evaluate(
    bundle: Path,
    dataset: Dataset,
    features: Path,
    settings: EvaluationSettings,
    metrics: list[str],
    pipeline: str,
    world: World = SINGLE_PROCESS,
    part: TrainedModel | None = None,
    anomaly_scores: AnomalyScores | None = None,
) -> Evidence:
    """Measure the model of ``bundle`` on the held-out split of ``dataset``.

    Args:
        bundle: sealed folder of a trained model.
        dataset: the evaluation data, possibly another version than the training data.
        features: folder of the dataset's extractor; read only if a metric uses the dataset's own features.
        settings: numbers of samples, draws and importance samples, and the seed.
        metrics: names of built-in metrics or of plug-ins.
        pipeline: name for the report and for error messages.
        world: the processes that share the work on their CPUs; all get the same evidence.
        part: a model to whose examples ``dataset`` is restricted; None: to none.
        anomaly_scores: for metrics of labelled anomalies (context.py).

    Raises:
        IntegrityError: a file does not match its digest.
        SettingsError: a metric is unknown or does not apply to this model.
        DataError: the model cannot take such data (``load``).
        RunError: a weight or a value is not finite.
    """
    model, trained = load(bundle, dataset, part), TrainedModel.read(bundle / "training.json")
    _refuse_broken_weights(model)
    loaded = extractors.load(features, dataset.spec, settings, metrics, pipeline)
    context = EvaluationContext(dataset, loaded, settings, world, anomaly_scores)
    measured, baselines = measure(model, metrics, context, pipeline)
    report = EvaluationReport(
        pipeline=pipeline,
        model_key=trained.key,
        weights_sha256=trained.weights_sha256,
        dataset=dataset.version.digest,
        metrics={name: _value(name, plugins.facts_of(name), measured[name], context) for name in metrics},
        context=baselines,
        by_class=_by_class(measured, metrics, context),
    )
    values = {name: measured[name].values_N for name in metrics}
    references = {f"{name}:reference": measured[name].reference_J for name in metrics}
    return Evidence(report, values | {name: values_J for name, values_J in references.items() if values_J is not None})


def load(bundle: Path, dataset: Dataset, part: TrainedModel | None = None) -> Model:
    """Load the model of ``bundle``.

    ``part``: as in ``evaluate``. A model of another schema takes the examples of such a part, and draws such, if that is
    possible. Raises DataError if it is not, or without ``part``.
    """
    model, theirs = load_model(bundle), TrainedModel.read(bundle / "training.json").spec
    if theirs.fits(dataset.spec, conditional=model.conditional):
        if part is None:
            return model
        conditional = translation.is_conditional(part)
        return translation.Truncated(model, part.spec, dataset.spec, conditional=conditional).eval()
    if part is None:
        raise DataError(
            f"the model was trained on {theirs.text()}; dataset {dataset.version.name} now has {dataset.spec.text()}"
            " of another schema: train again"
        )
    if reason := translation.obstacle(theirs, dataset.spec, conditional=model.conditional):
        raise DataError(f"the model cannot take the data of dataset {dataset.version.name}: {reason}: train again")
    return translation.Translated(model, theirs, dataset.spec).eval()


@torch.no_grad()
def measure(
    model: object, metrics: list[str], context: EvaluationContext, pipeline: str
) -> tuple[dict[str, Measurement], dict[str, MetricValue]]:
    """Return the measurements by metric, and baselines and linear probes by name. Each pass over model or data runs once."""
    chosen = {name: _metric(name, model, pipeline) for name in metrics}
    passes = {metric.measure: name for name, metric in chosen.items()}
    compute_baseline: dict[str, tuple[Facts, Callable[[EvaluationContext], Measurement]]] = {
        name: (plugins.facts_of(metric), compute) for metric in metrics for name, compute in chosen[metric].context.items()
    }
    probed = representation.can_probe(model, context)
    unchosen = {run: name for run, name in passes.items() if name in LIKELIHOODS and context.dataset.calibration is not None}
    progress = Progress(len(passes) + len(compute_baseline) + probed + len(unchosen), speaks=context.world.leads)
    # A copy with a new array cache, which is deleted when this function returns.
    context = replace(context, metrics=frozenset(metrics), progress=progress)
    measured: dict[str, Measurement] = {}
    for run, name in passes.items():
        with progress.begin(name):
            measured.update(run(model, context))
        if name not in measured:
            raise SettingsError(f"metric '{name}': its plug-in's measure returns {', '.join(measured)} but not {name}")
    baselines: dict[str, MetricValue] = {}
    for name, (facts, compute) in compute_baseline.items():
        with progress.begin(name):
            baselines[name] = _value(name, facts, compute(context), context)
    if probed:
        with progress.begin("probe"):
            found = representation.probes(model, context)
        baselines |= {name: _value(name, representation.FACTS, value, context) for name, value in found.items()}
    for run, name in unchosen.items():
        with progress.begin(f"{name}{ON_CALIBRATION}"):
            again = run(model, _on_calibration(context))
        names = [each for each in metrics if each in again]
        baselines |= {f"{each}{ON_CALIBRATION}": _value(each, plugins.facts_of(each), again[each], context) for each in names}
    progress.end()
    return measured, baselines


def _on_calibration(context: EvaluationContext) -> EvaluationContext:
    """Return the context of the calibration split, on which no decision is made.

    A champion was chosen on the held-out split, so its value there flatters it. Here it does not.
    """
    split = context.dataset.calibration
    assert split is not None, "the caller looks"
    return replace(context, dataset=replace(context.dataset, held_out=split))


def _metric(name: str, model: object, pipeline: str) -> Metric:
    where = f"params.yaml: pipelines.{pipeline}.evaluation.metrics: "
    try:
        needs = PROTOCOLS[plugins.facts_of(name).needs]
        metric = metric_of(name)
    except SettingsError as error:
        raise SettingsError(f"{where}{error}") from None
    if not isinstance(model, needs):
        raise SettingsError(
            f"{where}{name} needs a model of type {needs.__name__}, and this model is not of that type: remove the metric"
        )
    return metric


def _by_class(
    measured: dict[str, Measurement], metrics: list[str], context: EvaluationContext
) -> dict[str, dict[str, MetricValue]]:
    """Return the by-class values of each metric that has them, by class name."""
    names = context.dataset.spec.class_names or [str(y) for y in range(context.dataset.spec.classes)]
    return {
        name: {
            names[y]: _value(name, plugins.facts_of(name), value, context) for y, value in sorted(measured[name].by_class.items())
        }
        for name in metrics
        if measured[name].by_class
    }


def _value(name: str, facts: Facts, measurement: Measurement, context: EvaluationContext) -> MetricValue:
    return MetricValue(
        name=name,
        value=float(measurement.values_N.mean()),
        low=measurement.low,
        high=measurement.high,
        n=measurement.n,
        seed=context.settings.seed,
        unit=context.dataset.spec.unit if facts.in_unit else "",
        better=facts.better,
        fingerprint=measurement.fingerprint,
        repeats=measurement.repeats,
    )


def _refuse_broken_weights(model: Model) -> None:
    """Raise RunError if a weight is not finite. A NaN becomes a black pixel in a uint8 sample, and no metric detects that."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RunError(f"weights '{name}' are not finite: training diverged; lower training.learning_rate, train again")
