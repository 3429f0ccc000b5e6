"""20 steps, twice, on one thread of one machine: every loss to the bit. No hash crosses machines (shared faults: determinism)."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from remint.records import TrainedModel
from tests.support import training_cases as cases

SETTINGS = {"steps": 20, "validate_every": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, and every family trained by another process."""
    made = tmp_path_factory.mktemp("tiny")
    cases.prepare(made)
    command = [sys.executable, cases.__file__, str(made), ",".join(cases.FAMILIES), json.dumps(SETTINGS)]
    subprocess.run(command, env=cases.environment(), check=True, capture_output=True)
    return made


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_20_steps_twice_in_two_processes(family: str, folder: Path, tmp_path: Path) -> None:
    here = cases.train_into(cases.recipe(family, **SETTINGS), cases.load(folder), tmp_path)
    assert TrainedModel.read(folder / family / "out/training.json") == here
    assert cases.file_contents(folder / family) == cases.file_contents(tmp_path)
    rows = list(csv.reader((tmp_path / "out/curve.csv").open()))[1:]
    assert len(rows) == 20
    assert len({row[1] for row in rows}) == 20, "a loss that never changes would pass"
