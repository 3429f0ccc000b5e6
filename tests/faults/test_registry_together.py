"""Eight retrainings of one name that end at once. Two of one pipeline wait for each other, so that their ends are raced alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trials import Trials

COUNT = 8


@pytest.mark.case(14)
def test_eight_at_once_make_eight_versions_and_of_the_same_model_one(empty: Path, tmp_path: Path, trials: Trials) -> None:
    shutil.copytree(empty, tmp_path / "home")
    program = [sys.executable, "-m", "tests.registry_together", str(tmp_path / "home")]
    for trial in trials(short=1, full=50):
        number = trial.random.randrange(10**9)
        done = subprocess.run(program, input=f"{number}\n", capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        (said,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
        assert said["different"] == list(range(1, COUNT + 1)) and said["same"] == [COUNT + 1] * COUNT and said["found"] == []
        trial.note(registrations=2 * COUNT, versions=COUNT + 1, lost=0, doubled=0)
