"""Killed at each boundary of a registration and promotion: one version, loadable, and the alias is what the ledger says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import Postgres
from tests.trials import Trials

EFFECTS = {  # what a registration and promotion leave behind, each with a moment before and after it
    "create_experiment",
    "create_run",
    "log_batch",
    "log_artifacts",
    "copy of a file",
    "check in another process",
    "log_artifact",
    "create_registered_model",
    "create_model_version",
    "set_tag",
    "set_terminated",
    "rename",
    "commit of mlflow",
    "commit of ledger",
    "set_registered_model_alias",
    "set_model_version_tag",
    "set_registered_model_tag",
}


@contextmanager
def killer(folder: Path, seed: int, *server: str) -> Iterator[Callable[[int], dict[str, Any]]]:
    """What kills at the moment of a number, and says where that was and what was wrong after it."""
    program = [sys.executable, "-m", "tests.registry_kills", str(folder), str(seed), *server]
    with (folder / "words").open("w") as words:
        child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, text=True)
    assert child.stdin and child.stdout

    def said() -> dict[str, Any]:
        assert child.stdout
        for line in child.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise AssertionError((folder / "words").read_text()[-3000:])

    def kill(number: int) -> dict[str, Any]:
        assert child.stdin
        print(number, file=child.stdin, flush=True)
        return said()

    moments = {name for _, name in said()["moments"]}
    assert moments == {f"{when} {effect}" for when in ("before", "after") for effect in EFFECTS}
    yield kill
    child.stdin.close()
    assert child.wait(60) == 0


@pytest.mark.case(1)
def test_a_registration_that_is_killed_at_a_boundary_is_finished_by_the_next(tmp_path: Path, trials: Trials) -> None:
    with killer(tmp_path, trials.seed) as kill:
        for trial in trials(short=12, full=200):
            told = kill(trial.number)
            assert not told["found"], told
            trial.note(kills=1, lost=0, doubled=0)


@pytest.mark.case(1)
@pytest.mark.soak
def test_and_on_postgres(tmp_path: Path, trials: Trials, postgres: Postgres) -> None:
    with killer(tmp_path, trials.seed, postgres.url) as kill:
        for trial in trials(short=0, full=100):
            told = kill(trial.number)
            assert not told["found"], told
            trial.note(kills=1, lost=0, doubled=0)
