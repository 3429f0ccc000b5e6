"""params.yaml -> typed, frozen settings. Every error names its file and key, and the nearest valid name.

params.yaml
  datasets:  NAME: recipe.DatasetSettings
  pipelines: NAME: PipelineSettings    dataset, family, model, training   decide the weights (recipe.py)
                                       evaluation, promotion, schedule    do not
"""

from __future__ import annotations

import copy
import re
import zoneinfo
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from remint import metrics, plugins
from remint.errors import SettingsError
from remint.recipe import (
    Count,
    DatasetSettings,
    Fraction,
    ModelSettings,
    Positive,
    Recipe,
    Settings,
    TrainingSettings,
    unknown,
)

PARAMS = "params.yaml"

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


class ScheduleSettings(Settings):
    """When the pipeline runs by itself. Exactly one of cron, interval and rrule."""

    cron: str | None = None
    interval: Positive | None = None  # seconds
    rrule: str | None = None
    timezone: str = "UTC"

    @field_validator("cron")
    @classmethod
    def _cron(cls, cron: str | None) -> str | None:
        # Five fields of the cron alphabet; Prefect's own parser has the last word when it is deployed.
        if cron is not None and (len(cron.split()) != 5 or re.fullmatch(r"[\dA-Za-z*/,\-?#\s]+", cron) is None):
            raise ValueError(f"expected five cron fields, as in '0 3 * * *', not '{cron}'")
        return cron

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, timezone: str) -> str:
        if timezone not in zoneinfo.available_timezones():
            raise ValueError(f"expected an IANA name, as UTC or Europe/Berlin, not '{timezone}'")
        return timezone

    @model_validator(mode="after")
    def _one(self) -> ScheduleSettings:
        if sum(value is not None for value in (self.cron, self.interval, self.rrule)) != 1:
            raise ValueError("give exactly one of cron, interval (seconds) and rrule")
        return self


class PipelineSettings(Settings):
    """One entry of ``pipelines:``."""

    dataset: str
    family: str
    model: ModelSettings
    training: TrainingSettings
    evaluation: EvaluationSettings
    promotion: PromotionSettings
    schedule: ScheduleSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _model_of_family(cls, block: Any) -> Any:
        """The ``model:`` block is read with the settings of the family."""
        if not isinstance(block, dict) or not isinstance(block.get("family"), str):
            return block
        try:
            settings = plugins.settings_of(block["family"])
        except SettingsError as error:
            raise ValueError(str(error)) from None
        if not isinstance(block.get("model"), dict):
            return block
        try:
            return {**block, "model": settings.model_validate(block["model"])}
        except ValidationError as error:
            raise ValueError("; ".join(_lines(error, ("model",)))) from None

    @field_validator("schedule", mode="before")
    @classmethod
    def _no_schedule(cls, schedule: Any) -> Any:
        return schedule or None  # {} is how an absent block is written

    @model_validator(mode="after")
    def _metrics_fit(self) -> PipelineSettings:
        can = self.model.can | ({"classes"} if self.model.conditional else set())
        for metric in self.evaluation.metrics or []:
            needs = plugins.facts_of(metric).needs
            if needs == "classes" and "classes" not in can:
                raise ValueError(f"evaluation.metrics: {metric} needs model.conditional: true")
            if needs not in can:
                raise ValueError(f"evaluation.metrics: family '{self.family}' has no {needs}, which {metric} needs")
        for metric in sorted(self.promotion.metrics() - set(self.metrics())):
            raise ValueError(
                f"promotion: metric '{metric}' is not measured: add it to evaluation.metrics ({', '.join(self.metrics())})"
            )
        return self

    def metrics(self) -> list[str]:
        """The metrics that are measured: those asked for, else all that the family promises."""
        return self.evaluation.metrics or metrics.by_default(self.model.can)

    @property
    def recipe(self) -> Recipe:
        return Recipe.model_construct(dataset=self.dataset, family=self.family, model=self.model, training=self.training)


class Params(Settings):
    """All of params.yaml."""

    datasets: dict[str, DatasetSettings]
    pipelines: dict[str, PipelineSettings]

    @model_validator(mode="after")
    def _names_are_plain(self) -> Params:
        """They become names of files, artifacts and models."""
        for block in ("datasets", "pipelines"):
            for name in getattr(self, block):
                if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is None:
                    raise ValueError(f"{block}.{name}: expected a name of letters, digits, '.', '_' and '-'")
        return self

    @model_validator(mode="after")
    def _datasets_exist(self) -> Params:
        for name, pipeline in self.pipelines.items():
            if pipeline.dataset not in self.datasets:
                raise ValueError(
                    f"pipelines.{name}.dataset: "
                    + unknown(f"dataset '{pipeline.dataset}'", pipeline.dataset, list(self.datasets))
                )
        return self

    @model_validator(mode="after")
    def _inception_sees_images(self) -> Params:
        for name, pipeline in self.pipelines.items():
            table = pipeline.dataset in self.datasets and self.datasets[pipeline.dataset].kind == "table"
            for metric in pipeline.evaluation.metrics or []:
                if table and plugins.facts_of(metric).features == "inception":
                    raise ValueError(
                        f"pipelines.{name}.evaluation.metrics: {metric} needs images, and dataset '{pipeline.dataset}' is a "
                        "table: measure it in the dataset's own features, as fd_domain"
                    )
        return self

    def dataset(self, name: str) -> DatasetSettings:
        """Raises SettingsError with the nearest name where there is no such dataset."""
        if name not in self.datasets:
            raise SettingsError(f"{PARAMS}: " + unknown(f"dataset '{name}'", name, list(self.datasets)))
        return self.datasets[name]

    def pipeline(self, name: str) -> PipelineSettings:
        """Raises SettingsError with the nearest name where there is no such pipeline."""
        if name not in self.pipelines:
            raise SettingsError(f"{PARAMS}: " + unknown(f"pipeline '{name}'", name, list(self.pipelines)))
        return self.pipelines[name]


def load(folder: Path) -> Params:
    """Reads params.yaml of ``folder``. Raises SettingsError: one line a mistake, each with its key."""
    return validate(read(folder))


def read(folder: Path) -> dict[str, Any]:
    """params.yaml as plain values, by the YAML 1.2 rules that dvc reads it with."""
    path = folder / PARAMS
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text())
    except FileNotFoundError:
        raise SettingsError(f"there is no {PARAMS} in {folder}: run inside a clone of your remint repository") from None
    except (YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise SettingsError(f"{path} is not YAML: {problem}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected the blocks datasets: and pipelines:")
    return content


def write(content: Mapping[str, Any], folder: Path) -> None:
    """Writes params.yaml (of a workspace: a person's own file has comments and is never written)."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    with (folder / PARAMS).open("w") as stream:
        yaml.dump(dict(content), stream)


def validate(content: Mapping[str, Any]) -> Params:
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise SettingsError("\n".join(f"{PARAMS}: {line}" for line in _lines(error))) from None


def override(content: dict[str, Any], pipeline: str, assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of params.yaml's content with ``--set key=value`` applied below ``pipelines.<pipeline>``.

    A value is read as YAML, so that 20 is a number and true a truth value. Whether the key exists and the
    value fits is for ``validate`` to say. Raises SettingsError for what is not ``key=value``.
    """
    content = copy.deepcopy(content)
    yaml = YAML(typ="safe", pure=True)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise SettingsError(f"--set {assignment}: expected key=value, as in --set training.steps=20")
        try:
            value = yaml.load(text)
        except YAMLError:
            raise SettingsError(f"--set {assignment}: the value is not YAML") from None
        block: Any = content["pipelines"][pipeline]
        *parents, last = key.split(".")
        for parent in parents:
            block = block.setdefault(parent, {}) if isinstance(block, dict) else None
            if not isinstance(block, dict):
                raise SettingsError(f"--set {assignment}: '{parent}' is not a block of settings")
        block[last] = value
    return content


def overrides_as_dict(assignments: Sequence[str]) -> dict[str, str]:
    """The overrides as they are recorded with a version."""
    return dict(sorted((key, value) for key, _, value in (a.partition("=") for a in assignments)))


def _lines(error: ValidationError, prefix: tuple[str, ...] = ()) -> list[str]:
    """One line a mistake: key: what is wrong."""
    lines = []
    for mistake in error.errors(include_url=False, include_context=False):
        key = ".".join(str(part) for part in (*prefix, *mistake["loc"]) if part != "[key]")
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "missing":
            message = "missing: every block is written, if only as {}"
        elif not mistake["type"].startswith("value_error"):
            message = f"{message[0].lower()}{message[1:]}, not {mistake['input']!r}"
        # A family's own lines already carry their key.
        for part in message.split("; "):
            own_key = part.startswith(("model.", "model:"))
            lines.append(f"{key}.{part}" if own_key else f"{key}: {part}" if key else part)
    return lines
