"""Notices of an import: each is printed as a message for the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.server import progress
from remint.cli.terminal import Display
from remint.data import sources, splits
from remint.settings.dataset import DatasetSettings
from tests.unit.test_data_pictures import picture, save, tree


def printed(events: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines of the terminal about the events of a step."""
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(progress, "listeners", [lambda pipeline, event, fields: heard.append({"event": event, **fields})])
    report = progress.reporter("mine", "data")
    for line in events.read_text().splitlines():
        report(json.loads(line))
    return [str(Display()._text(each.pop("event"), each)) for each in heard]


def test_every_notice_has_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMINT_EVENTS", str(tmp_path / "events.jsonl"))

    def import_dataset(**settings: Any) -> None:
        sources.snapshot(
            "mine", DatasetSettings(**settings), tmp_path, tmp_path / "out", schemas=tmp_path / f"of-{settings.get('kind')}"
        )

    tree(tmp_path / "pets")
    (tmp_path / "pets/cat/broken.png").write_text("no image")
    (tmp_path / "pets/notes.txt").touch()
    (tmp_path / "pets/dog/1.png").rename(tmp_path / "pets/dog/1.jpg")
    import_dataset(source="pets", undecodable=0.5)
    (tmp_path / "a.csv").write_text("x,y\n1,2\n2,4\n3,3\n,5\n")
    (tmp_path / "b.csv").write_text("x,y\n101,2\n102,4\n")
    import_dataset(source="a.csv", kind="table", missing="drop_rows")
    import_dataset(source="b.csv", kind="table", missing="drop_rows")
    (tmp_path / "index.csv").write_bytes("index;x;y\n0;1,5;-\n1;2,5;2\n2;4,5;3\n".encode("utf-16"))
    for _ in range(2):  # a run asks DVC first whether all is known, and the import of that question says nothing to a person
        sources.snapshot(
            "mine", DatasetSettings(source="index.csv", kind="table"), tmp_path, tmp_path / "out", schemas=tmp_path / "of-index"
        )

    save(tmp_path / "deep/0.png", np.full((6, 5), 4000, np.uint16))
    for bits in (16, None):
        sources.snapshot(
            "mine", DatasetSettings(source="deep", bits=bits), tmp_path, tmp_path / "out", schemas=tmp_path / "of-deep"
        )

    assert printed(tmp_path / "events.jsonl", monkeypatch) == [
        "1 of 5 image files could not be used and were set aside: cat/broken.png is not an image",
        "1 files that are not images were ignored; the first is notes.txt",
        "1 files are read by their content, not by the end of their name: dog/1.jpg is a PNG image",
        "1 of 4 rows were dropped because of missing values",
        "column x has mean 101.5, 122 standard deviations from its first import (2)",
        "the schema was learnt from a.csv; b.csv fits it",
        *2
        * (
            "index.csv is read with decimal commas",
            "index.csv is read as UTF-16",
            "index.csv is separated by ;",
            "column index: left out: the index of the saved frame, and no measurement",
            "column y: missing where a cell holds - (setting placeholders)",
        ),
        "values: 4000 .. 4000 in 16 bits: read as 16 bits, divided by 256 (setting bits); "
        "0 .. 15 only, read as 256 levels, so nearly black: if there are no others, set levels: 16",
        "no value in 16-bit files is above 4000, but the schema reads 16 bits, so images are nearly black: "
        "raise schema_version by one to read 12 bits",
        "values: 4000 .. 4000 in 16 bits: read as 16 bits, divided by 256 (setting bits); "
        "0 .. 15 only, read as 256 levels, so nearly black: if there are no others, set levels: 16",
    ]


def test_the_rule_of_a_split_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMINT_EVENTS", str(tmp_path / "events.jsonl"))

    def divide(source: str, **settings: Any) -> None:
        given = DatasetSettings(source=source, **settings)
        sources.snapshot("mine", given, tmp_path, tmp_path / "raw", schemas=tmp_path / f"of-{source}")
        splits.prepare("mine", given, tmp_path / "raw", tmp_path / "prepared")

    dates = [f"2024-0{1 + n // 20}-{1 + n % 20:02}" for n in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(["x,who,day", *(f"{n}.5,p{n % 25},{dates[n]}" for n in range(100))]))
    divide("t.csv", kind="table", drop=["day"], split={"group": "who"})
    (tmp_path / "s.csv").write_text("\n".join(["x,day", *(f"{n}.5,{dates[n]}" for n in range(100))]))
    for count in (100, 95):
        (tmp_path / "s.csv").write_text("\n".join(["x,day", *(f"{n}.5,{dates[n]}" for n in range(count))]))
        divide("s.csv", kind="table", split={"time": "day", "held_out": "7d"})
    for n in range(60):
        save(tmp_path / "pair" / ("test" if n % 3 == 0 else "train") / f"{n}.png", picture(max(n, 5)))
    divide("pair", split={"held_out": "test"})
    divide("pair", schema_version=2)
    assert printed(tmp_path / "events.jsonl", monkeypatch) == [
        "column who: left out: it divides the splits, and is no measurement",
        "no group is in two splits: of 25 groups, 76% of the examples are training, 4% validation, 20% held out",
        "column day: left out: it divides the splits, and is no measurement",
        "the 8 rows from 2024-05-13 on are held out (split.time)",
        "column day: left out: it divides the splits, and is no measurement",
        "held-out rows begin at 2024-05-13, as in an earlier import, not at 2024-05-08: older ones may have been trained on",
        "the 3 rows from 2024-05-13 on are held out (split.time)",
        "the 20 examples of test are held out; 4 others, which equal one of them or are of its group, are left out",
        "the folders test, train are read as labels: to keep test apart, set split: {held_out: test}",
    ]
