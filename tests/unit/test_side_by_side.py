"""Comparable numbers and their tables. tests/e2e/test_main_path.py runs the command itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from remint.errors import SettingsError
from remint.evaluation import charts
from remint.evaluation.comparison import Cost, Growth
from remint.promotion import comparable, side_by_side
from remint.records import DataSpec, MetricValue
from remint.runtime.home import Home
from remint.stores.mlflow import ModelVersion

SPEC = DataSpec(shape=(1, 8, 8), levels=17)


def value(name: str, number: float, **fingerprint: Any) -> MetricValue:
    return MetricValue(name=name, value=number, low=number - 0.1, high=number + 0.1, n=10, seed=0, fingerprint=fingerprint)


def entry(name: str, dataset: str = "d" * 64, **metrics: MetricValue) -> side_by_side.Entry:
    version = ModelVersion(
        name=name, version=1, key="", run_id="", weights_sha256="", dataset=dataset, commit="", dirty=False, created=""
    )
    return side_by_side.Entry(version, cast(Any, None), "gan", {}, SPEC, 1, 1000, metrics)


def test_only_metrics_that_were_measured_alike_are_comparable() -> None:
    entries = [
        entry("a", fd=value("fd", 1.0, extractor="x"), iwae=value("iwae", 1.0, k=5), nll=value("nll", 2.0)),
        entry("b", fd=value("fd", 2.0, extractor="x"), iwae=value("iwae", 1.0, k=50)),
    ]
    assert side_by_side.comparable(entries) == ["fd"]
    assert side_by_side.notes(entries) == ["iwae was measured differently (k (5, 50)): not comparable"]


@pytest.mark.parametrize(
    ("fingerprints", "words"),
    [
        ([{"seed": 0}, {"seed": 0}], ""),
        ([{"given": "class"}, {}], "one model is conditional, the other is not"),
        ([{}, {"given": "class"}, {}], "only some models are conditional"),
        ([{"seed": 0, "extractor": "a" * 64}, {"seed": 1, "extractor": "b" * 64}], "feature extractor; evaluation.seed (0, 1)"),
        (
            [{"importance_samples": 50}, {"importance_samples": 500}, {"importance_samples": 50}],
            "evaluation.importance_samples (50, 500)",
        ),
        ([{"of_a_plug_in": "x"}, {"of_a_plug_in": "y"}], "of_a_plug_in"),
    ],
)
def test_a_different_method_is_said_in_words(fingerprints: list[dict[str, Any]], words: str) -> None:
    assert comparable.differences(fingerprints) == words


def test_models_of_different_data_get_one_refusal_for_all_metrics() -> None:
    entries = [entry("a", "1" * 64, fd=value("fd", 1.0, dataset="1")), entry("b", "2" * 64, fd=value("fd", 1.0, dataset="2"))]
    assert side_by_side.comparable(entries) == []
    (note,) = side_by_side.notes(entries)
    assert "2 dataset versions (1111111111, 2222222222)" in note and "not comparable" in note


SECONDS = MetricValue(name="t", value=0.0123, low=0.012, high=0.013, n=15, seed=0, unit="s")


def cost(model: str, metrics: dict[str, MetricValue], score: bool) -> Cost:
    return Cost(
        model=model,
        family="gan",
        dataset="digits",
        dataset_version="d" * 64,
        examples=SPEC.text(),
        metrics=metrics,
        draw=SECONDS,
        score=SECONDS if score else None,
        parameters=12345,
        bytes=2**20,
    )


def growth(model: str) -> tuple[Growth, ...]:
    shared = Growth(
        model=model,
        family="gan",
        grows="size",
        value=1,
        shape=(1, 8, 8),
        parameters=12345,
        unavailable_reason="",
        draw=SECONDS,
    )
    too_odd = {"parameters": None, "draw": None, "unavailable_reason": "sides must halve"}
    return (
        shared,
        shared.model_copy(update={"value": 2, "shape": (1, 16, 16), **too_odd}),
        shared.model_copy(update={"grows": "examples", "value": 10_000}),
    )


def test_the_tables_name_missing_values_with_the_reason(tmp_path: Path) -> None:
    models = (cost("a/1", {"fd": value("fd", 1.0)}, True), cost("b/1", {"nll": value("nll", 2.0)}, False))
    answer = side_by_side.Comparison(models=models, growth=growth("a/1"), comparable=(), notes=(), picture="p.png")
    (_, head, quality), (_, _, costs), (_, _, growing) = side_by_side.tables(answer)
    assert head == ["metric", "a/1", "b/1"]
    assert quality == [["fd", "1.000 [0.900, 1.100]", "-"], ["nll", "-", "2.000 [1.900, 2.100]"]]
    assert costs[0][3:] == ["12.3 [12, 13] ms", "12.3 [12, 13] ms", "12,345", "1.00 MiB"] and costs[1][4] == "-"
    assert [line[1:3] for line in growing] == [
        ["1 x sides (1 x 8 x 8)", "12.3 [12, 13] ms"],
        ["2 x sides (1 x 16 x 16)", "sides must halve"],
        ["10,000 examples", "12.3 [12, 13] ms"],
    ]
    json = answer.to_json()["growth"][1]
    assert (json["why_not"], json["draw"], json["shape"]) == ("sides must halve", None, [1, 16, 16])
    assert "unavailable_reason" not in json
    for name, shared in (("with", ["fd"]), ("without", [])):
        charts.comparison(tmp_path / f"{name}.png", models, growth("a/1"), shared)
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("picture", "why"), [("x.jpg", "ends in .png"), ("nowhere/x.png", "does not exist")])
def test_a_picture_that_cannot_be_written_is_refused_first(picture: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=why):
        side_by_side.compare(Home(tmp_path, tmp_path), ["a"], tmp_path / picture, print)
