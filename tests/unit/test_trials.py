"""Counted cases: few or all trials, reproducible from the seed, and continued after the last passed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import trials
from tests.support.trials import Trials

TEST = "tests/faults/test_x.py::test_x"


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(trials, "RECORDS", tmp_path / "soak")
    monkeypatch.setattr(trials, "RESULTS", tmp_path / "soak.json")
    monkeypatch.setattr(trials, "PAGE", tmp_path / "page.md")
    return tmp_path


def test_a_short_run_uses_the_first_trials_and_records_nothing(records: Path) -> None:
    short = [trial.random.random() for trial in Trials(7, TEST, 3, soak=False)(2, 5)]
    full = [trial.random.random() for trial in Trials(7, TEST, 3, soak=True)(2, 5)]
    other = [trial.random.random() for trial in Trials(7, TEST, 4, soak=False)(2, 5)]
    assert len(full) == 5 and short == full[:2] and not set(other) & set(full)
    (record,) = (records / "soak").iterdir()
    assert [json.loads(line)["trial"] for line in record.read_text().splitlines()] == [0, 1, 2, 3, 4]


def test_a_soak_continues_at_the_failed_trial(records: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        for trial in Trials(7, TEST, 3, soak=True)(1, 4):
            trial.note(lost=1 / (trial.number - 2))
    assert [trial.number for trial in Trials(7, TEST, 3, soak=True)(1, 4)] == [2, 3]
    assert list(Trials(7, TEST, 3, soak=True)(1, 4)) == []


def test_parallel_parts_share_the_trials_of_one_record(records: Path) -> None:
    odd = [(trial.number, trial.random.random()) for trial in Trials(7, TEST, 3, soak=True, part=(1, 2))(1, 5)]
    even = [(trial.number, trial.random.random()) for trial in Trials(7, TEST, 3, soak=True, part=(0, 2))(1, 5)]
    assert [number for number, _ in odd] == [1, 3] and [number for number, _ in even] == [0, 2, 4]
    whole = [(trial.number, trial.random.random()) for trial in Trials(7, TEST, 3, soak=False)(5, 5)]
    assert sorted(odd + even) == whole and list(Trials(7, TEST, 3, soak=True)(1, 5)) == []


def test_the_page_shows_the_counts(records: Path) -> None:
    page = records / "page.md"
    page.write_text(f"before\n{trials.BEGIN}old\n{trials.END}after\n")
    for trial in Trials(7, TEST, 3, soak=True)(1, 4):
        trial.note(kills=2, lost=0)
    for _ in range(2):
        trials.main()
        before, row, after = page.read_text().partition("| 7 | `test_x` | 4 | kills 8, lost 0 | 3 |")
        assert before.startswith("before\n") and row and after.endswith("after\n") and "old" not in page.read_text()


def test_the_page_of_counts_has_the_table_of_the_results() -> None:
    written = trials.BEGIN + trials.table(json.loads(trials.RESULTS.read_text())) + trials.END
    assert trials.PAGE.read_text().count(written) == 1
