"""Eight simultaneous registrations of one name. Retrainings of one pipeline wait for each other, so only their ends race."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.answering import start_program
from tests.support.trials import Trials

pytestmark = pytest.mark.usefixtures("forked")

COUNT = 8


@pytest.mark.soak
@pytest.mark.case(14)
def test_eight_at_once_make_eight_versions_and_of_the_same_model_one(empty: Path, tmp_path: Path, trials: Trials) -> None:
    shutil.copytree(empty, tmp_path / "home")
    with start_program("tests.support.registry_together", [str(tmp_path / "home")], tmp_path / "words") as race:
        for trial in trials(short=1, full=50):
            answer = race(trial.random.randrange(10**9))
            assert answer["different"] == list(range(1, COUNT + 1)) and answer["same"] == [COUNT + 1] * COUNT, answer
            assert answer["found"] == []
            trial.note(registrations=2 * COUNT, versions=COUNT + 1, lost=0, doubled=0)
