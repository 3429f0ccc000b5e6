"""Settings of each step with defaults filled in. A step depends on its data, these settings and its code.

A step reads no other settings. A changed setting therefore runs again only the steps that have it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from remint.settings import plugins
from remint.settings.base import Settings
from remint.settings.catalogue import ANOMALY_METRICS, Facts
from remint.settings.dataset import DatasetSettings
from remint.settings.imports import Imports
from remint.settings.judging import EvaluationSettings, in_domain
from remint.settings.params import Params
from remint.settings.split import SplitSettings


class PrepareStep(Settings):
    source: str
    split: SplitSettings

    @classmethod
    def of(cls, params: Params, dataset: str) -> PrepareStep:
        settings = params.dataset(dataset)
        return cls(source=settings.source, split=settings.split)

    @property
    def settings(self) -> DatasetSettings:
        """Dataset settings with these values and the defaults of all others."""
        return DatasetSettings.model_construct(source=self.source, split=self.split)


class FeaturesStep(Settings):
    dataset: str
    learns: bool  # whether a metric of the pipeline is measured in the dataset's own features

    @classmethod
    def of(cls, params: Params, pipeline: str) -> FeaturesStep:
        settings = params.pipeline(pipeline)
        return cls(dataset=settings.dataset, learns=in_domain(settings.metrics()))


class CalibrateStep(Settings):
    dataset: str
    family: str
    threads: int

    @classmethod
    def of(cls, params: Params, pipeline: str) -> CalibrateStep:
        settings = params.pipeline(pipeline)
        return cls(dataset=settings.dataset, family=settings.family, threads=settings.training.threads)


class EvaluateStep(Settings):
    dataset: str
    family: str
    threads: int
    devices: int
    evaluation: EvaluationSettings
    facts: dict[str, Facts]  # by metric
    files: dict[str, str]  # SHA-256 of each feature file, by the features' name

    @classmethod
    def of(cls, params: Params, pipeline: str) -> EvaluateStep:
        settings = params.pipeline(pipeline)
        metrics = settings.metrics()
        return cls(
            dataset=settings.dataset,
            family=settings.family,
            threads=settings.training.threads,
            devices=settings.training.devices,
            evaluation=settings.evaluation.model_copy(update={"metrics": metrics}),
            facts={metric: plugins.facts_of(metric) for metric in metrics},
            files={name: sha256 for name, (_, sha256) in settings.evaluation.feature_files(metrics).items()},
        )

    @property
    def metrics(self) -> list[str]:
        return list(self.facts)

    @property
    def in_domain(self) -> bool:
        return in_domain(self.metrics)

    @property
    def scores_anomalies(self) -> bool:
        return any(metric in ANOMALY_METRICS for metric in self.metrics)


def resolved(params: Params) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each step with the name of its dataset or pipeline, and with its settings and code digests."""
    imports = Imports()
    prepare_code, features_code = imports.digests("pipelines.prepare"), imports.digests("pipelines.features")
    for name in params.datasets:
        yield "prepare", name, _key(PrepareStep.of(params, name).model_dump(mode="json"), prepare_code)
    for name, pipeline in params.pipelines.items():
        features, evaluate = FeaturesStep.of(params, name), EvaluateStep.of(params, name)
        yield "features", name, _key(features.model_dump(mode="json"), features_code)
        yield "train", name, _key(pipeline.recipe.resolved(), train_code(pipeline.family, imports))
        calibrate_code = plugins.digests(imports, ["pipelines.calibrate"], pipeline.family)
        yield "calibrate", name, _key(CalibrateStep.of(params, name).model_dump(mode="json"), calibrate_code)
        modules = ["pipelines.evaluate", *(f"remint.evaluation.{extractor}" for extractor in evaluate.files)]
        modules += ["pipelines.anomalies"] if evaluate.scores_anomalies else []
        code = plugins.digests(imports, modules, evaluate.family, evaluate.metrics)
        yield "evaluate", name, _key(evaluate.model_dump(mode="json"), code)


def train_code(family: str, imports: Imports) -> dict[str, str]:
    """Return digests of the code that decides the weights of a family."""
    return plugins.digests(imports, ["pipelines.train"], family)


def _key(settings: dict[str, Any], code: dict[str, str]) -> dict[str, Any]:
    return {"settings": settings, "code": code}
