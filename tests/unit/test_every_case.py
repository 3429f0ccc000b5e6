"""Each file of tests/cases: what a person reads about it, or the one line that refuses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remint.data import sources, splits
from remint.errors import DataError
from remint.settings.dataset import DatasetSettings

CASES = Path(__file__).parents[1] / "cases"
INDEX, CATEGORY = "left out: the index of the saved frame, and no measurement", "a category, as the file says"

SAID: dict[str, list[str]] = {  # the events of the import and the division, without those that every such dataset has
    "category_of_numbers.parquet": [f"decision: column store {CATEGORY}", f"decision: column grade {CATEGORY}"],
    "few_distinct_rows.csv": ["split_by_occurrence"],
    "latin1.csv": ["refused: latin1.csv is not UTF-8: save it as UTF-8 (iconv -f latin1 -t utf-8 latin1.csv > new.csv)"],
    "one_column.csv": [],
    "placeholders.csv": ["decision: column charge missing where a cell holds - (setting placeholders)"],
    "resaved_frame.csv": [f"decision: column Unnamed: 0 {INDEX}"],
    "sales.csv": [],
    "sampled_frame.parquet": [f"decision: column __index_level_0__ {INDEX}"],
    "semicolons.csv": ["decimal_comma", "separator"],
    "some_jfif": [],
    "tabs.csv": ["separator"],
    "twelve_bit": ["decision: values 0 .. 4091 in 16 bits: read as 12 bits, divided by 16 (setting bits)"],
    "two_answers.csv": ["split_by_occurrence"],
    "version_numbers.csv": ["refused: column 'firmware' contains dates such as"],
    "whole_numbers.csv": [],
    "whole_numbers_missing.parquet": [],
}


@pytest.mark.parametrize("case", sorted(CASES.iterdir()), ids=lambda case: str(case.name))
def test_each_case_is_read_or_read_and_said_or_refused(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMINT_EVENTS", str(tmp_path / "events.jsonl"))
    settings = DatasetSettings(source=str(case), kind="image" if case.is_dir() else "table")
    refused = []
    try:
        sources.snapshot("case", settings, tmp_path, tmp_path / "raw", schemas=tmp_path / "schemas")
        if settings.kind == "table":  # the pictures are too few to divide
            splits.prepare("case", settings, tmp_path / "raw", tmp_path / "prepared")
    except DataError as error:
        refused = [f"refused: {error}"]
    said = [_text(json.loads(line)) for line in _lines(tmp_path / "events.jsonl")] + refused
    assert len(said) == len(SAID[case.name]), said
    for found, expected in zip(said, SAID[case.name], strict=True):
        assert found.startswith(expected) or ("refused" in expected and expected.removeprefix("refused: ") in found), found


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _text(event: dict[str, Any]) -> str:
    return f"decision: {event['subject']} {event['decision']}" if event["event"] == "decision" else str(event["event"])
