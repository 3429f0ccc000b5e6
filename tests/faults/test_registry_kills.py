"""Kills at each boundary of a registration and promotion: one version, loadable, with the alias of the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.answering import Ask, start_program
from tests.support.postgres import Postgres
from tests.support.trials import Trials

pytestmark = pytest.mark.usefixtures("forked")

EFFECTS = {  # persistent effects of a registration and promotion, each with a moment before and after it
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
def start_killer(folder: Path, seed: int, *server: str) -> Iterator[Ask]:
    """Start the program that kills at the moment of a number. Yield a function that returns the place and the problems."""
    with start_program("tests.support.registry_kills", [str(folder), str(seed), *server], folder / "words") as kill:
        moments = {name for _, name in kill(None)["moments"]}
        assert moments == {f"{when} {effect}" for when in ("before", "after") for effect in EFFECTS}
        yield kill


@pytest.mark.case(1)
def test_a_registration_that_is_killed_at_a_boundary_is_finished_by_the_next(tmp_path: Path, trials: Trials) -> None:
    with start_killer(tmp_path, trials.seed) as kill:
        for trial in trials(short=2, full=200):
            answer = kill(trial.number)
            assert not answer["found"], answer
            trial.note(kills=1, lost=0, doubled=0)


@pytest.mark.case(1)
@pytest.mark.soak
def test_and_on_postgres(tmp_path: Path, trials: Trials, postgres: Postgres) -> None:
    with start_killer(tmp_path, trials.seed, postgres.url) as kill:
        for trial in trials(short=0, full=100):
            answer = kill(trial.number)
            assert not answer["found"], answer
            trial.note(kills=1, lost=0, doubled=0)
