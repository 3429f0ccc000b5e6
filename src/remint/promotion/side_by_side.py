"""Comparison of models: quality with intervals, cost of drawing and scoring, and growth of that cost with the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from remint.evaluation.comparison import COUNT, SIZE, Cost, Growth
from remint.promotion.comparable import differences
from remint.promotion.projection import current_version
from remint.records import DataSpec, MetricValue, Record
from remint.runtime.home import Home
from remint.serving import outputs
from remint.stores.mlflow import ModelVersion
from remint.stores.open import fetch_bundle

if TYPE_CHECKING:  # torch is imported only when something is measured
    from remint.evaluation.cost import Task
    from remint.models.contract import Model


@dataclass(frozen=True)
class Entry:
    """One registered version, loaded."""

    version: ModelVersion
    model: Model
    family: str
    settings: dict[str, Any]
    spec: DataSpec
    threads: int
    bytes: int
    metrics: dict[str, MetricValue]

    @property
    def ref(self) -> str:
        return self.version.ref


class Comparison(Record):
    """Answer of ``remint compare --json``."""

    models: tuple[Cost, ...]
    growth: tuple[Growth, ...]
    comparable: tuple[str, ...]  # metrics that are comparable between the models
    notes: tuple[str, ...]  # on metrics that are not comparable
    picture: str

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


def compare(home: Home, refs: list[str], picture: Path, say: Callable[[str], None]) -> Comparison:
    """Measure models side by side and draw ``picture``. Takes about a minute; ``say`` receives the progress.

    Raises SettingsError if ``picture`` is not a .png or its folder does not exist.
    """
    outputs.check_picture(picture)
    versions = {version.ref: version for version in (current_version(home, ref) for ref in refs)}  # each once, in this order
    entries = [_loaded(home, version) for version in versions.values()]
    models, growth, shared = _costs(entries, say), _growth(entries, say), comparable(entries)

    from remint.evaluation import charts

    with outputs.whole(picture) as temporary:
        charts.comparison(temporary, models, growth, shared)
    return Comparison(models=models, growth=growth, comparable=tuple(shared), notes=tuple(notes(entries)), picture=str(picture))


def _loaded(home: Home, version: ModelVersion) -> Entry:
    bundle = fetch_bundle(home, version)

    from remint.models.bundle import MODEL, WEIGHTS, load_model

    about = json.loads((bundle / MODEL).read_bytes())
    return Entry(
        version=version,
        model=load_model(bundle),
        family=about["family"],
        settings=about["model"],
        spec=DataSpec.model_validate(about["spec"]),
        threads=version.tags.settings["training"]["threads"],
        bytes=(bundle / WEIGHTS).stat().st_size,
        metrics=version.tags.measurements,
    )


def comparable(entries: list[Entry]) -> list[str]:
    """Return the metrics that at least two models have, and that all of these models measured in the same way."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.metrics))
    holders = {name: [entry.metrics[name] for entry in entries if name in entry.metrics] for name in names}
    return [
        name
        for name, values in holders.items()
        if len(values) > 1 and all(value.fingerprint == values[0].fingerprint for value in values)
    ]


def notes(entries: list[Entry]) -> list[str]:
    """Return a line for each set of numbers that is not comparable, with the reason."""
    lines = []
    datasets = {entry.version.dataset[:10] for entry in entries}
    if len(datasets) > 1:
        lines.append(
            f"the models were measured on {len(datasets)} dataset versions ({', '.join(sorted(datasets))}): "
            "their metrics are not comparable; run the pipelines again on one dataset"
        )
    shared = comparable(entries)
    for name in dict.fromkeys(name for entry in entries for name in entry.metrics):
        values = [entry.metrics[name] for entry in entries if name in entry.metrics]
        if len(values) > 1 and name not in shared and len(datasets) == 1:
            how = differences([value.fingerprint for value in values])
            lines.append(f"{name} was measured differently ({how}): not comparable")
    return lines


def _costs(entries: list[Entry], say: Callable[[str], None]) -> tuple[Cost, ...]:
    """Return each model with its metrics, its size, and the seconds of drawing and of scoring."""
    from remint.evaluation import cost

    tasks: dict[str, Task] = {}
    for entry in entries:
        tasks |= _tasks(entry.ref, entry.model, entry.spec, cost.EXAMPLES, entry.threads)
    seconds = cost.measure_seconds(tasks, cost.REPEATS, lambda progress: say(f"measuring the time of each model: {progress}"))
    return tuple(
        Cost(
            model=entry.ref,
            family=entry.family,
            dataset=entry.version.tags.origin.name,
            dataset_version=entry.version.dataset,
            examples=entry.spec.text(),
            metrics=entry.metrics,
            **_seconds(entry.ref, seconds),
            parameters=cost.parameters(entry.model),
            bytes=entry.bytes,
        )
        for entry in entries
    )


def _tasks(name: str, model: Model, spec: DataSpec, count: int, threads: int) -> dict[str, Task]:
    """Return the tasks that the model supports, as ``NAME draw`` and ``NAME score``."""
    from remint.evaluation import cost

    both = {"draw": cost.sampling_task(model, count, threads), "score": cost.scoring_task(model, spec, count, threads)}
    return {f"{name} {what}": task for what, task in both.items() if task is not None}


def _seconds(name: str, seconds: dict[str, MetricValue | None]) -> dict[str, MetricValue | None]:
    return {what: seconds.get(f"{name} {what}") for what in ("draw", "score")}


def _growth(entries: list[Entry], say: Callable[[str], None]) -> tuple[Growth, ...]:
    """Return one row per step: each recipe rebuilt for larger examples, and each model with fewer and more examples."""
    from remint.evaluation import cost
    from remint.settings import plugins

    rows: dict[str, Growth] = {}
    tasks: dict[str, Task] = {}

    def step(entry: Entry, grows: Literal["size", "examples"], value: int, larger: cost.ScaledModel, count: int) -> None:
        name = f"{entry.ref} {grows} {value}"
        if larger.model is not None:
            tasks.update(_tasks(name, larger.model, larger.spec, count, entry.threads))
        rows[name] = Growth(
            model=entry.ref,
            family=entry.family,
            grows=grows,
            value=value,
            shape=larger.spec.shape,
            parameters=larger.parameters,
            unavailable_reason=larger.unavailable_reason,
        )

    for entry in entries:
        settings = plugins.settings_of(entry.family).model_validate(entry.settings)
        for times in cost.SCALES:
            step(entry, SIZE, times, cost.scaled_model(entry.family, settings, entry.spec, times), cost.EXAMPLES)
        for count in cost.COUNTS:
            step(entry, COUNT, count, cost.ScaledModel(entry.spec, entry.model), count)
    seconds = cost.measure_seconds(
        tasks, cost.REPEATS_SCALED, lambda progress: say(f"measuring the time of larger and of more examples: {progress}")
    )
    return tuple(row.model_copy(update=_seconds(name, seconds)) for name, row in rows.items())


def tables(answer: Comparison) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the answer as tables: (title, columns, rows) of each."""
    models = answer.models
    measured = [
        [name, *(_metric(row.metrics.get(name)) for row in models)]
        for name in dict.fromkeys(name for row in models for name in row.metrics)
    ]
    rows = [
        [
            row.model,
            row.family,
            f"{row.dataset} {row.dataset_version[:10]}",
            _time(row.draw),
            _time(row.score),
            f"{row.parameters:,}",
            f"{row.bytes / 2**20:.2f} MiB",
        ]
        for row in models
    ]
    growing = [
        [
            row.model,
            f"{row.value} x {'sides' if len(row.shape) == 3 else 'columns'} ({' x '.join(map(str, row.shape))})"
            if row.grows == SIZE
            else f"{row.value:,} examples",
            row.unavailable_reason or _time(row.draw),
            "" if row.unavailable_reason else _time(row.score),
            f"{row.parameters:,}" if row.parameters is not None else "",
        ]
        for row in answer.growth
    ]
    return [
        ("Quality", ["metric", *(row.model for row in models)], measured),
        ("Cost", ["model", "family", "data", "draws 1,000", "scores 1,000", "parameters", "weights"], rows),
        ("Growth", ["model", "of", "draws", "scores", "parameters"], growing),
    ]


def _metric(value: MetricValue | None) -> str:
    return "-" if value is None else value.text()


def _time(value: MetricValue | None) -> str:
    """Return milliseconds if all is below a second, else seconds; "-" if the model cannot do it, or takes too long to measure."""
    if value is None:
        return "-"
    scale, unit = (1.0, "s") if value.high >= 1.0 else (1e3, "ms")
    return f"{value.value * scale:.3g} [{value.low * scale:.3g}, {value.high * scale:.3g}] {unit}"
