"""Small inputs that people brought (tests/cases): what each becomes, from the file to the splits and their leakage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remint.data import arrays, sources, splits
from remint.data.arrays import Dataset
from remint.data.schema import SCHEMA, Schema
from remint.errors import DataError
from remint.evaluation import leakage
from remint.settings.recipe import DatasetSettings

CASES = Path(__file__).parents[1] / "cases"


def prepared(file: Path, folder: Path, **settings: Any) -> Dataset:
    """Import and divide a table as the first two steps do it."""
    given = DatasetSettings(source=str(file), kind="table", **settings)
    sources.snapshot("case", given, folder, folder / "raw", schemas=folder / "schemas")
    splits.prepare("case", given, folder / "raw", folder / "prepared")
    return arrays.load(folder / "prepared")


@pytest.mark.parametrize("name", ["one_column", "sales", "few_distinct_rows", "two_answers"])
def test_honest_rows_are_no_leakage_and_shares_are_those_that_were_asked(name: str, tmp_path: Path) -> None:
    dataset = prepared(CASES / f"{name}.csv", tmp_path)
    total = sum(dataset.version.counts.values())
    for share, split in ((0.7, "train"), (0.1, "validation"), (0.2, "held_out")):
        assert abs(dataset.version.counts[split] / total - share) < 3.5 * (share * (1 - share) / total) ** 0.5, split
    found = leakage.find(dataset.held_out, dataset.train, dataset.spec).leakage
    assert found.share <= 0.01, found


@pytest.mark.parametrize(("name", "rule"), [("one_column", "content"), ("sales", "content"), ("two_answers", "occurrence")])
def test_the_rule_of_the_split_is_chosen_once_and_changed_by_a_setting_only(name: str, rule: str, tmp_path: Path) -> None:
    first = prepared(CASES / f"{name}.csv", tmp_path)
    assert Schema.read(tmp_path / "raw" / SCHEMA).split_by == rule
    assert (first.train.id_N is not None) == (rule == "occurrence")
    lines = (CASES / f"{name}.csv").read_text().splitlines()
    for count in (len(lines) // 2, len(lines)):  # the latter rows of the file, then all of them, in another order
        file = tmp_path / "other.csv"
        file.write_text("\n".join([lines[0], *reversed(lines[-count + 1 :])]) + "\n")
        again = prepared(file, tmp_path)
        assert Schema.read(tmp_path / "raw" / SCHEMA).split_by == rule
    assert sorted(map(bytes, np.asarray(again.held_out.x_NX))) == sorted(map(bytes, np.asarray(first.held_out.x_NX)))
    if rule == "content":
        other = prepared(CASES / f"{name}.csv", tmp_path, split={"by": "occurrence"})
        assert other.version.split["by"] == "occurrence" and other.held_out.id_N is not None
    else:  # of four different rows
        with pytest.raises(DataError, match=r"none of the 5000 examples falls into .*: set split\.by: occurrence"):
            prepared(CASES / f"{name}.csv", tmp_path, split={"by": "content"})


def test_a_model_that_was_trained_on_held_out_occurrences_is_found(tmp_path: Path) -> None:
    here = prepared(CASES / "two_answers.csv", tmp_path / "a")
    smaller = prepared(CASES / "two_answers.csv", tmp_path / "b", split={"held_out": 0.1})
    assert leakage.find(smaller.held_out, here.train, here.spec).leakage.exact == 0, "a part of the same held-out rows"
    reseeded = prepared(CASES / "two_answers.csv", tmp_path / "c", split={"seed": 1})
    found = leakage.find(here.held_out, reseeded.train, here.spec).leakage
    assert found.share == found.exact / found.checked and abs(found.share - 0.7) < 0.06, "held out here, trained on there"


def test_a_class_with_few_held_out_examples_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(splits, "emit", lambda event, **fields: events.append({"event": event, **fields}))
    rows = [f"{x:.6f},{'rare' if n % 100 == 0 else 'usual'}" for n, x in enumerate(np.random.default_rng(0).normal(size=400))]
    (tmp_path / "t.csv").write_text("\n".join(["x,label", *rows]) + "\n")
    dataset = prepared(tmp_path / "t.csv", tmp_path, label="label")
    count = int((np.asarray(dataset.held_out.y_N) == dataset.spec.class_names.index("rare")).sum())
    assert count < 5 and events == [{"event": "few_held_out", "label": "rare", "count": count}]
