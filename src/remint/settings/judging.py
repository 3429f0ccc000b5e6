"""How a pipeline's models are measured and what the gate asks of them: the blocks evaluation: and promotion:."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from remint.errors import SettingsError
from remint.settings import plugins
from remint.settings.recipe import Count, Fraction, Positive, Settings

# What features other than the dataset's own are made from, for the person whose params.yaml does not say.
FEATURE_FILES = {
    "inception": "the weights file weights-inception-2015-12-05-6726825d.pth, as torch-fidelity publishes it",
    "program": "a torch.export program, with its sha256",
}


INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of that file
PUBLISHED_ONLY = ("fid", "fid_infinity")  # numbers that are held against published ones


class FeatureFile(Settings):
    """A file that features are made from."""

    path: str  # of a file, from the repository's folder, or s3://bucket/key
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # inception: None is as published; program: required


class EvaluationSettings(Settings):
    """How a model is measured on the held-out split."""

    metrics: list[str] | None = None  # None: everything that the family promises
    samples: Positive = 360  # in one draw, against as many held-out examples; at most as many as there are
    draws: Annotated[int, Field(ge=2)] = 20  # repeated draws, for the interval
    importance_samples: Positive = 500  # K of IWAE-K
    seed: Count = 0
    inception: FeatureFile | None = None  # weights of the 2015 Inception network, for fid and the metrics named _inception
    program: FeatureFile | None = None  # a torch.export program of examples to features, for the metrics named _program

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: list[str] | None) -> list[str] | None:
        try:
            for metric in metrics or []:
                plugins.facts_of(metric)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return metrics

    @field_validator("program")
    @classmethod
    def _pinned(cls, program: FeatureFile | None) -> FeatureFile | None:
        if program is not None and program.sha256 is None:
            raise ValueError("sha256: missing: a program is used only where its SHA-256 is the one that is written here")
        return program

    @model_validator(mode="after")
    def _feature_files(self) -> EvaluationSettings:
        for metric in self.metrics or []:
            features = plugins.facts_of(metric).features
            if features in FEATURE_FILES and getattr(self, features) is None:
                raise ValueError(f"metrics: {metric} needs evaluation.{features}.path: {FEATURE_FILES[features]}")
            if metric in PUBLISHED_ONLY and self.inception and self.inception.sha256 not in (None, INCEPTION_SHA256):
                raise ValueError(
                    f"metrics: {metric} is said of the published weights only (SHA-256 {INCEPTION_SHA256[:8]}..), and "
                    "inception.sha256 names others: leave sha256 out, or the metric"
                )
        return self

    def feature_files(self, metrics: Sequence[str]) -> dict[str, tuple[FeatureFile, str]]:
        """The files whose features these metrics are measured in, by name, each with the SHA-256 that it must have."""
        wanted = {plugins.facts_of(metric).features for metric in metrics}
        files = {"inception": self.inception, "program": self.program}
        return {name: (file, file.sha256 or INCEPTION_SHA256) for name, file in files.items() if file and name in wanted}


def in_domain(metrics: Sequence[str]) -> bool:
    """Whether one of these metrics is measured in the dataset's own features."""
    return any(plugins.facts_of(metric).features == "domain" for metric in metrics)


class Bound(Settings):
    """An absolute bound on a metric's value."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _one(self) -> Bound:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


class Improve(Settings):
    """The challenger must be better by more than ``margin`` with this confidence."""

    metric: str | list[str]  # of several one is enough
    margin: float | Literal["auto"] = 0.0  # auto: more than two seeds differ by, as remint spread measured it
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95

    @property
    def metrics(self) -> list[str]:
        return [self.metric] if isinstance(self.metric, str) else self.metric

    @model_validator(mode="after")
    def _one_unit(self) -> Improve:
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError("metric: name at least one, and each one once")
        if len(self.metrics) > 1 and self.margin not in ("auto", 0.0):
            raise ValueError("margin: one number is no margin for several metrics, which have units of their own: auto, or 0")
        return self


class PromotionSettings(Settings):
    """The gate's rules. None at all: nothing is promoted."""

    require: dict[str, Bound] = {}
    improve: Improve | None = None
    never_worse: dict[str, Annotated[float, Field(ge=0.0)]] = {}  # guard metric: how much worse it may be
    leakage: Fraction = 0.01  # held-out examples that may stand, exactly or nearly, in the training split, as a share of all
    approval: Literal["auto", "manual"] = "auto"

    def metrics(self) -> set[str]:
        return {*self.require, *self.never_worse, *(self.improve.metrics if self.improve else [])}
