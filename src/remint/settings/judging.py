"""Settings of the evaluation and of the gate: the blocks evaluation: and promotion:."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from remint.errors import SettingsError
from remint.settings import plugins
from remint.settings.base import Count, Fraction, Positive, Settings, did_you_mean
from remint.settings.catalogue import ANOMALY_METRICS

# Files for features other than the dataset's own, as the error names them if params.yaml gives none.
FEATURE_FILES = {
    "inception": "the weights file weights-inception-2015-12-05-6726825d.pth, as torch-fidelity publishes it",
    "program": "a torch.export program, with its sha256",
}


MIN_SEEDS = 3  # that an automatic margin needs
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of that file
PUBLISHED_ONLY = ("fid", "fid_infinity")  # numbers that are compared with published ones

# Metrics of a version that awaits shadow, on copies of requests (promotion/shadow_report.py).
SHADOW = "shadow_"
SHADOW_METRICS = ("shadow_error_rate", "shadow_latency", "shadow_score_distance")


class FeatureFile(Settings):
    """File that features are computed from."""

    path: str  # file, relative to the repository, or s3://bucket/key
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = (
        None  # inception: None: the published file; program: required
    )


class LabelledAnomalies(Settings):
    """File of examples that are all anomalies; the held-out examples are the normal ones."""

    source: str  # .npy, .npz, .csv, .parquet or an archive of images, relative to the repository
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # of the file: another file is another measurement


class EvaluationSettings(Settings):
    """Measurement of a model on the held-out split."""

    metrics: list[str] | None = None  # None: the default metrics for the family's capabilities
    examples: Positive = 2000  # held-out examples of a likelihood, chosen by the seed; limited to their number
    samples: Positive = 360  # per draw, compared with as many held-out examples; limited to their number
    draws: Annotated[int, Field(ge=2)] = 20  # repeated draws, for the interval
    importance_samples: Positive = 500  # K of IWAE-K; nothing else uses it
    seed: Count = 0
    inception: FeatureFile | None = None  # weights of the 2015 Inception network, for fid and the metrics named _inception
    anomalies: LabelledAnomalies | None = None  # for the metrics named anomaly_
    program: FeatureFile | None = None  # a torch.export program of examples to features, for the metrics named _program

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, metrics: list[str] | None) -> list[str] | None:
        try:
            for metric in metrics or []:
                plugins.facts_of(metric)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return metrics

    @field_validator("program")
    @classmethod
    def _check_program(cls, program: FeatureFile | None) -> FeatureFile | None:
        if program is not None and program.sha256 is None:
            raise ValueError("sha256: missing: give the SHA-256 of the program")
        return program

    @model_validator(mode="after")
    def _check_feature_files(self) -> EvaluationSettings:
        for metric in self.metrics or []:
            if metric in ANOMALY_METRICS and self.anomalies is None:
                raise ValueError(f"metrics: {metric} needs evaluation.anomalies: a source of examples that are all anomalies")
            features = plugins.facts_of(metric).features
            if features in FEATURE_FILES and getattr(self, features) is None:
                raise ValueError(f"metrics: {metric} needs evaluation.{features}.path: {FEATURE_FILES[features]}")
            if metric in PUBLISHED_ONLY and self.inception and self.inception.sha256 not in (None, INCEPTION_SHA256):
                raise ValueError(
                    f"metrics: {metric} is defined for the published weights only (SHA-256 {INCEPTION_SHA256[:8]}..), but "
                    "inception.sha256 is of other weights: remove sha256 or the metric"
                )
        return self

    def feature_files(self, metrics: Sequence[str]) -> dict[str, tuple[FeatureFile, str]]:
        """Return the feature files of these metrics by name, each with its required SHA-256."""
        wanted = {plugins.facts_of(metric).features for metric in metrics}
        files = {"inception": self.inception, "program": self.program}
        return {name: (file, file.sha256 or INCEPTION_SHA256) for name, file in files.items() if file and name in wanted}


def in_domain(metrics: Sequence[str]) -> bool:
    """Return whether one of these metrics is measured in the dataset's own features."""
    return any(plugins.facts_of(metric).features == "domain" for metric in metrics)


class Bound(Settings):
    """Absolute bound on a metric's value."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _check_bound(self) -> Bound:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


class Improve(Settings):
    """Rule that the challenger must be better by more than ``margin``, with this confidence over the life of the model."""

    metric: str | list[str]  # one metric, or several of which one must improve
    margin: float | Literal["auto"] = 0.0  # auto: more than seed-to-seed variation explains
    seeds: Annotated[int, Field(ge=0, le=100)] = 5  # trainings by which a scheduled run measures that once; 0: only remint spread
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95

    @property
    def metrics(self) -> list[str]:
        return [self.metric] if isinstance(self.metric, str) else self.metric

    @field_validator("margin", mode="before")
    @classmethod
    def _check_margin(cls, margin: Any) -> Any:
        is_number = isinstance(margin, int | float) and not isinstance(margin, bool)
        if margin != "auto" and not (is_number and math.isfinite(margin)):
            raise ValueError(f"expected a number, or auto, not {str(margin)[:100]!r}")
        return margin

    @model_validator(mode="after")
    def _check_metric(self) -> Improve:
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError("metric: give at least one metric, and each only once")
        if 0 < self.seeds < MIN_SEEDS:
            raise ValueError(f"seeds: give at least {MIN_SEEDS}, or 0 to measure by remint spread only")
        if len(self.metrics) > 1 and self.margin not in ("auto", 0.0):
            raise ValueError("margin: one number does not fit several metrics with different units: use auto or 0")
        return self


class PromotionSettings(Settings):
    """Rules of the gate. Without any rule nothing is promoted."""

    require: dict[str, Bound] = {}
    improve: Improve | None = None
    never_worse: dict[str, Annotated[float, Field(ge=0.0)]] = {}  # guard metric: by how much it may get worse
    leakage: Fraction = 0.01  # largest share of held-out examples that may occur, exactly or nearly, in the training split
    approval: Literal["auto", "manual"] = "auto"

    @model_validator(mode="after")
    def _check_shadow(self) -> PromotionSettings:
        for metric in self.shadow:
            if metric not in SHADOW_METRICS:
                raise ValueError("require: " + did_you_mean(f"metric '{metric}'", metric, list(SHADOW_METRICS)))
        compared = {"never_worse": [*self.never_worse], "improve": self.improve.metrics if self.improve else []}
        for rule, metrics in compared.items():
            for metric in metrics:
                if metric.startswith(SHADOW):
                    raise ValueError(f"{rule}: {metric} is measured on requests, which anybody can send: it can only be required")
        return self

    @property
    def shadow(self) -> dict[str, Bound]:
        """Requirements on the answers to copies of requests."""
        return {metric: bound for metric, bound in self.require.items() if metric.startswith(SHADOW)}

    @property
    def required(self) -> dict[str, Bound]:
        """Requirements on held-out examples."""
        return {metric: bound for metric, bound in self.require.items() if not metric.startswith(SHADOW)}

    def metrics(self) -> set[str]:
        """Return the metrics on held-out examples that a rule names."""
        return {*self.required, *self.never_worse, *(self.improve.metrics if self.improve else [])}
