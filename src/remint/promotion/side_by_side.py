"""Models side by side: quality with its interval, what drawing and scoring cost, and how that grows with the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remint.errors import SettingsError
from remint.promotion.projection import current_version
from remint.records import DataSpec, MetricValue, ModelVersion
from remint.runtime.home import Home
from remint.stores.open import fetch_bundle

if TYPE_CHECKING:  # torch is imported once something is measured
    from remint.evaluation.cost import Task
    from remint.models.contract import Model

Row = dict[str, Any]
SIZE, COUNT = "size", "examples"  # what grows: the sides of images or the columns of a table; how many are drawn or scored


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


def compare(home: Home, refs: list[str], picture: Path, say: Callable[[str], None]) -> Row:
    """What ``remint compare --json`` prints; draws ``picture``. ``say`` hears how far it is: it takes about a minute.

    Raises SettingsError for a picture that is no .png or whose folder does not exist.
    """
    if picture.suffix != ".png":
        raise SettingsError(f"-o {picture}: expected a name that ends in .png")
    if not picture.absolute().parent.is_dir():
        raise SettingsError(f"-o {picture}: the folder {picture.absolute().parent} does not exist")
    versions = {
        version.ref: version for version in (current_version(home, ref) for ref in refs)
    }  # each once, in the order that they are named
    entries = [_loaded(home, version) for version in versions.values()]
    models, growth, shared = _costs(entries, say), _growth(entries, say), comparable(entries)
    answer = {
        "models": models,
        "growth": growth,
        "comparable": shared,
        "notes": notes(entries),
        "picture": str(picture),
    }

    from remint.evaluation import charts

    charts.comparison(picture, models, growth, shared)
    return answer


def _loaded(home: Home, version: ModelVersion) -> Entry:
    bundle = fetch_bundle(home, version)

    from remint.models.bundle import MODEL, WEIGHTS, load_model

    about = json.loads((bundle / MODEL).read_bytes())
    recipe = json.loads(version.tags["recipe"])
    return Entry(
        version=version,
        model=load_model(bundle),
        family=about["family"],
        settings=about["model"],
        spec=DataSpec.model_validate(about["spec"]),
        threads=recipe["training"]["threads"],
        bytes=(bundle / WEIGHTS).stat().st_size,
        metrics={
            name: MetricValue.model_validate(value) for name, value in json.loads(version.tags.get("metrics", "{}")).items()
        },
    )


def comparable(entries: list[Entry]) -> list[str]:
    """The metrics that two models at least have, and all that have them measured in one and the same way."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.metrics))
    holders = {name: [entry.metrics[name] for entry in entries if name in entry.metrics] for name in names}
    return [
        name
        for name, values in holders.items()
        if len(values) > 1 and all(value.fingerprint == values[0].fingerprint for value in values)
    ]


def notes(entries: list[Entry]) -> list[str]:
    """Which numbers must not be held against each other, and why."""
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
            keys = {key for value in values for key in value.fingerprint}
            differing = sorted(
                key for key in keys if any(value.fingerprint.get(key) != values[0].fingerprint.get(key) for value in values)
            )
            lines.append(f"{name} was measured differently ({', '.join(differing)}): not comparable")
    return lines


def _costs(entries: list[Entry], say: Callable[[str], None]) -> list[Row]:
    """Each model with its metrics, its size, and the seconds of drawing and of scoring."""
    from remint.evaluation import cost

    tasks: dict[str, Task] = {}
    for entry in entries:
        tasks |= _tasks(entry.ref, entry.model, entry.spec, cost.EXAMPLES, entry.threads)
    seconds = cost.measure_seconds(tasks, cost.REPEATS, lambda how_far: say(f"takes the time of each model: {how_far}"))
    return [
        {
            "model": entry.ref,
            "family": entry.family,
            "dataset": json.loads(entry.version.tags.get("data", "{}")).get("name", ""),
            "dataset_version": entry.version.dataset,
            "examples": entry.spec.text(),
            "metrics": {name: value.to_json() for name, value in entry.metrics.items()},
            **_seconds(entry.ref, seconds),
            "parameters": cost.parameters(entry.model),
            "bytes": entry.bytes,
        }
        for entry in entries
    ]


def _tasks(name: str, model: Model, spec: DataSpec, count: int, threads: int) -> dict[str, Task]:
    """Drawing and scoring, as far as the model can, by ``NAME draw`` and ``NAME score``."""
    from remint.evaluation import cost

    both = {"draw": cost.sampling_task(model, count, threads), "score": cost.scoring_task(model, spec, count, threads)}
    return {f"{name} {what}": task for what, task in both.items() if task is not None}


def _seconds(name: str, seconds: dict[str, MetricValue | None]) -> Row:
    found = {what: seconds.get(f"{name} {what}") for what in ("draw", "score")}
    return {what: value.to_json() if value else None for what, value in found.items()}


def _growth(entries: list[Entry], say: Callable[[str], None]) -> list[Row]:
    """Each recipe built anew for larger examples, and each model as it is for fewer and more of them: a row a step."""
    from remint.evaluation import cost
    from remint.settings import plugins

    rows: list[Row] = []
    tasks: dict[str, Task] = {}

    def step(entry: Entry, grows: str, value: int, larger: cost.ScaledModel, count: int) -> None:
        name = f"{entry.ref} {grows} {value}"
        if larger.model is not None:
            tasks.update(_tasks(name, larger.model, larger.spec, count, entry.threads))
        rows.append(
            {
                "model": entry.ref,
                "family": entry.family,
                "grows": grows,
                "value": value,
                "shape": list(larger.spec.shape),
                "parameters": larger.parameters,
                "why_not": larger.unavailable_reason,
                "name": name,
            }
        )

    for entry in entries:
        settings = plugins.settings_of(entry.family).model_validate(entry.settings)
        for times in cost.SCALES:
            step(entry, SIZE, times, cost.scaled_model(entry.family, settings, entry.spec, times), cost.EXAMPLES)
        for count in cost.COUNTS:
            step(entry, COUNT, count, cost.ScaledModel(entry.spec, entry.model), count)
    seconds = cost.measure_seconds(
        tasks, cost.REPEATS_SCALED, lambda how_far: say(f"takes the time of larger and of more examples: {how_far}")
    )
    return [{**{key: row[key] for key in row if key != "name"}, **_seconds(row["name"], seconds)} for row in rows]


def tables(answer: Row) -> list[tuple[str, list[str], list[list[str]]]]:
    """The answer in words: (title, columns, rows) of each table."""
    models = answer["models"]
    measured = [
        [name, *(_metric(row["metrics"].get(name)) for row in models)]
        for name in dict.fromkeys(name for row in models for name in row["metrics"])
    ]
    rows = [
        [
            row["model"],
            row["family"],
            f"{row['dataset']} {row['dataset_version'][:10]}",
            _time(row["draw"]),
            _time(row["score"]),
            f"{row['parameters']:,}",
            f"{row['bytes'] / 2**20:.2f} MiB",
        ]
        for row in models
    ]
    growing = [
        [
            row["model"],
            f"{row['value']} x {'sides' if len(row['shape']) == 3 else 'columns'} ({' x '.join(map(str, row['shape']))})"
            if row["grows"] == SIZE
            else f"{row['value']:,} examples",
            row["why_not"] or _time(row["draw"]),
            "" if row["why_not"] else _time(row["score"]),
            f"{row['parameters']:,}" if row["parameters"] is not None else "",
        ]
        for row in answer["growth"]
    ]
    return [
        ("Quality", ["metric", *(row["model"] for row in models)], measured),
        ("Cost", ["model", "family", "data", "draws 1,000", "scores 1,000", "parameters", "weights"], rows),
        ("Growth", ["model", "of", "draws", "scores", "parameters"], growing),
    ]


def _metric(value: Row | None) -> str:
    return "-" if value is None else MetricValue.model_validate(value).text()


def _time(value: Row | None) -> str:
    """Milliseconds where all is below a second; a dash where the model cannot, or where it takes too long to be measured."""
    if value is None:
        return "-"
    scale, unit = (1.0, "s") if value["high"] >= 1.0 else (1e3, "ms")
    return f"{value['value'] * scale:.3g} [{value['low'] * scale:.3g}, {value['high'] * scale:.3g}] {unit}"
