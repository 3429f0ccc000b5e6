"""params.yaml as typed, frozen settings. Every error names its file and key, and suggests the nearest valid name.

params.yaml
  datasets:  NAME: dataset.DatasetSettings
  pipelines: NAME: PipelineSettings    dataset, family, model, training   decide the weights (recipe.py)
                                       evaluation, promotion, schedule    do not (judging.py, schedule.py)
                                       serving, triggers                  do not (shadow.py, triggers.py)
                                       publish, resources                 do not (publish.py, resources.py)
  notify:    notify.NotifySettings
"""

from __future__ import annotations

import copy
import reprlib
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator, model_validator
from ruamel.yaml import YAML

from remint.errors import SettingsError
from remint.records import DataSpec
from remint.runtime.home import NAME_RULE, is_name
from remint.runtime.yaml import LARGEST, load_safe_yaml
from remint.settings import catalogue, plugins
from remint.settings.base import Settings, did_you_mean
from remint.settings.dataset import DatasetSettings
from remint.settings.judging import EvaluationSettings, PromotionSettings
from remint.settings.notify import NotifySettings
from remint.settings.publish import Address
from remint.settings.recipe import MODEL_SETTINGS, ModelSettings, Recipe, TrainingSettings
from remint.settings.resources import ResourceSettings
from remint.settings.schedule import ScheduleSettings
from remint.settings.shadow import ServingSettings
from remint.settings.triggers import TriggerSettings

PARAMS = "params.yaml"
MOST_MISTAKES = 20  # reported at a time

_short = reprlib.Repr()  # shortens the values that an error quotes
_short.maxstring = _short.maxother = 100


class PipelineSettings(Settings):
    """One entry of ``pipelines:``."""

    dataset: str
    family: str
    model: ModelSettings
    training: TrainingSettings
    evaluation: EvaluationSettings
    promotion: PromotionSettings
    schedule: ScheduleSettings | None = None
    serving: ServingSettings = ServingSettings()
    triggers: TriggerSettings = TriggerSettings()
    publish: Address | None = None  # s3://bucket/prefix or a folder: where the champion is written, for services without MLflow
    resources: ResourceSettings = ResourceSettings()

    @model_validator(mode="before")
    @classmethod
    def _validate_model(cls, block: Any) -> Any:
        """Validate the ``model:`` block with the settings class of the family."""
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
    def _empty_as_none(cls, schedule: Any) -> Any:
        return schedule or None  # {} means: no schedule

    @model_validator(mode="after")
    def _check_metrics(self) -> PipelineSettings:
        can = self.model.can | {"score"} | ({"classes"} if self.model.conditional else set())
        for metric in self.evaluation.metrics or []:
            needs = plugins.facts_of(metric).needs
            if needs == "classes" and "classes" not in can:
                raise ValueError(f"evaluation.metrics: {metric} needs model.conditional: true")
            if needs not in can:
                raise ValueError(f"evaluation.metrics: {metric} needs {needs}, which family '{self.family}' does not have")
        for metric in sorted(self.promotion.metrics() - set(self.metrics())):
            raise ValueError(
                f"promotion: metric '{metric}' is not measured: add it to evaluation.metrics ({', '.join(self.metrics())})"
            )
        self.serving.check(self.promotion)
        return self

    def metrics(self) -> list[str]:
        """Return the metrics to measure: those in ``evaluation.metrics``, else the defaults for the family's capabilities."""
        return self.evaluation.metrics or catalogue.default_metrics(self.model.can, self.promotion.metrics())

    @property
    def recipe(self) -> Recipe:
        return Recipe.model_construct(dataset=self.dataset, family=self.family, model=self.model, training=self.training)


class Params(Settings):
    """Content of params.yaml."""

    datasets: dict[str, DatasetSettings]
    pipelines: dict[str, PipelineSettings]
    notify: NotifySettings | None = None

    @model_validator(mode="after")
    def _check_names(self) -> Params:
        """Check the names, which become names of files, artifacts and models."""
        for block in ("datasets", "pipelines"):
            seen: dict[str, str] = {}
            for name in getattr(self, block):
                if not is_name(name):
                    raise ValueError(f"{block}.{_short.repr(name)}: expected a name: {NAME_RULE}")
                twin = seen.setdefault(name.lower(), name)
                if twin != name:
                    raise ValueError(f"{block}.{name}: on some disks its files are those of {block}.{twin}: choose another name")
        return self

    @model_validator(mode="after")
    def _check_datasets(self) -> Params:
        for name, pipeline in self.pipelines.items():
            if pipeline.dataset not in self.datasets:
                raise ValueError(
                    f"pipelines.{name}.dataset: "
                    + did_you_mean(f"dataset '{pipeline.dataset}'", pipeline.dataset, list(self.datasets))
                )
        return self

    @model_validator(mode="after")
    def _check_inception(self) -> Params:
        for name, pipeline in self.pipelines.items():
            table = pipeline.dataset in self.datasets and self.datasets[pipeline.dataset].kind == "table"
            for metric in pipeline.evaluation.metrics or []:
                if table and plugins.facts_of(metric).features == "inception":
                    raise ValueError(
                        f"pipelines.{name}.evaluation.metrics: {metric} needs images, but dataset '{pipeline.dataset}' is a "
                        "table: use a metric in the dataset's own features, such as fd_domain"
                    )
        return self

    def check_missing(self, pipeline: str, spec: DataSpec) -> None:
        """Raise SettingsError if rows of the data ``spec`` may lack values, and the pipeline's family cannot take such rows."""
        settings = self.pipeline(pipeline)
        dropped = self.dataset(settings.dataset).drop
        gaps = [column.name for column in spec.columns if column.missing and column.name not in dropped]
        if not gaps or settings.model.takes_missing:
            return
        names = f"column{'s' * (len(gaps) > 1)} {', '.join(gaps[:3])}" + f" and {len(gaps) - 3} more" * (len(gaps) > 3)
        able = " or ".join(name for name, model in MODEL_SETTINGS.items() if model.takes_missing)
        raise SettingsError(
            f"{PARAMS}: pipelines.{pipeline}.family: {settings.family} cannot take missing values, but {names} may lack some: "
            f"set datasets.{settings.dataset}.missing: drop_rows, or use family: {able}"
        )

    def dataset(self, name: str) -> DatasetSettings:
        """Return the dataset's settings. Raises SettingsError with the nearest name if the dataset does not exist."""
        if name not in self.datasets:
            raise SettingsError(f"{PARAMS}: " + did_you_mean(f"dataset '{name}'", name, list(self.datasets)))
        return self.datasets[name]

    def pipeline(self, name: str) -> PipelineSettings:
        """Return the pipeline's settings. Raises SettingsError with the nearest name if the pipeline does not exist."""
        if name not in self.pipelines:
            raise SettingsError(f"{PARAMS}: " + did_you_mean(f"pipeline '{name}'", name, list(self.pipelines)))
        return self.pipelines[name]


def load_params(folder: Path) -> Params:
    """Read params.yaml of ``folder``. Raises SettingsError with one line per mistake, each with its key."""
    return validate_params(read_params(folder))


class LatestParams:
    """params.yaml of a folder, read again after each change. A file with a mistake changes nothing."""

    def __init__(self, folder: Path) -> None:
        """Read the file, as ``load_params`` does."""
        self._folder, self._stamp = folder, _stamp(folder)
        self._params = load_params(folder)

    def __call__(self) -> Params:
        stamp = _stamp(self._folder)
        if stamp != self._stamp:
            with suppress(SettingsError, OSError):
                self._params = load_params(self._folder)
            self._stamp = stamp
        return self._params


def _stamp(folder: Path) -> tuple[int, ...]:
    """Return numbers that change with the file; none if there is no file."""
    with suppress(OSError):
        found = (folder / PARAMS).stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    return ()


def read_params(folder: Path) -> dict[str, Any]:
    """Return params.yaml as plain values, read by the YAML 1.2 rules that DVC uses."""
    path = folder / PARAMS
    try:
        if not stat.S_ISREG(path.stat().st_mode) or path.stat().st_size > LARGEST:
            raise SettingsError(f"{path} is not a settings file: expected a regular file of at most {LARGEST >> 10} KiB")
        return parse_params(path.read_text(), str(path))
    except FileNotFoundError:
        raise SettingsError(f"there is no {PARAMS} in {folder}: run inside a clone of your remint repository") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None


def parse_params(text: str, place: str) -> dict[str, Any]:
    """Return the text of params.yaml as plain values. ``place``: of the text, for errors."""
    try:
        content = load_safe_yaml(text)
    except ValueError as error:
        raise SettingsError(f"{place} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{place}: expected the blocks datasets: and pipelines:")
    return content


def write_params(content: Mapping[str, Any], folder: Path) -> None:
    """Write params.yaml of a workspace. Not for a person's file, whose comments would be lost (edit.py keeps them)."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    with (folder / PARAMS).open("w") as stream:
        yaml.dump(dict(content), stream)


def validate_params(content: Mapping[str, Any]) -> Params:
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        lines = _lines(error)
        more = [f"{PARAMS}: and {len(lines) - MOST_MISTAKES} more mistakes"] if len(lines) > MOST_MISTAKES else []
        raise SettingsError("\n".join([*(f"{PARAMS}: {line}" for line in lines[:MOST_MISTAKES]), *more])) from None


def apply_overrides(content: dict[str, Any], pipeline: str, assignments: Sequence[str]) -> dict[str, Any]:
    """Return a copy of params.yaml's content with ``--set key=value`` applied below ``pipelines.<pipeline>``.

    A value is read as YAML: 20 is a number and true a boolean. ``validate_params`` checks keys and values later. Raises
    SettingsError if an assignment is not ``key=value``.
    """
    content = copy.deepcopy(content)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise SettingsError(f"--set {assignment}: expected key=value, as in --set training.steps=20")
        try:
            value = load_safe_yaml(text)
        except ValueError:
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
    """Return the overrides in the form that is recorded with a version."""
    return dict(sorted((key, value) for key, _, value in (a.partition("=") for a in assignments)))


def _lines(error: ValidationError, prefix: tuple[str, ...] = ()) -> list[str]:
    """Return one line per mistake: the key and the problem."""
    lines = []
    for mistake in error.errors(include_url=False, include_context=False):
        key = ".".join(str(part) for part in (*prefix, *mistake["loc"]) if part != "[key]")
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "missing":
            message = "missing: add it (an empty block is written as {})"
        elif not mistake["type"].startswith("value_error"):
            message = f"{message[0].lower()}{message[1:]}, not {_short.repr(mistake['input'])}"
        # The lines of a family's settings start with their key already.
        for part in message.split("; "):
            own_key = part.startswith(("model.", "model:"))
            lines.append(f"{key}.{part}" if own_key else f"{key}: {part}" if key else part)
    return lines
