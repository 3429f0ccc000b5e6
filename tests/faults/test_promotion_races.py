"""Simultaneous promotions of two versions in two processes: one wins, the other is refused, and both stores agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from remint.errors import ChampionChanged
from remint.promotion import decide
from remint.promotion.decide import Against
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.runtime.home import Home
from remint.stores.open import open_ledger, open_tracking
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL
from tests.support.racers import context, race_process
from tests.support.trials import Trials


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    return cases.copy_home(registered, tmp_path / "home")


@contextmanager
def start_promoters(home: Home, work: Callable[..., str]) -> Iterator[Callable[[list[tuple[Any, ...]]], list[str]]]:
    """Run two processes for all races. Yield a function that sends a request to each and returns their answers in order."""
    start = context.Barrier(2)
    pipes = [context.Pipe() for _ in range(2)]
    racers = [race_process(_run_races, theirs, start, home, work) for _, theirs in pipes]
    for each in racers:
        each.start()

    def race(requests: list[tuple[Any, ...]]) -> list[str]:
        for (ours, _), arguments in zip(pipes, requests, strict=True):
            ours.send(arguments)
        for ours, _ in pipes:
            assert ours.poll(120), "a promoter died"
        return [ours.recv() for ours, _ in pipes]

    yield race
    for (ours, _), each in zip(pipes, racers, strict=True):
        ours.send(None)
        each.join(60)


def _run_races(pipe: Any, start: Any, home: Home, work: Callable[..., str]) -> None:
    while (arguments := pipe.recv()) is not None:
        start.wait(60)
        pipe.send(work(home, *arguments))


def promote(home: Home, version: int, against: Against) -> str:
    try:
        decide.promote(home, f"{MODEL}/{version}", "race", against=against, who=f"p{version}")
    except ChampionChanged as error:
        return str(error)
    return "won"


@pytest.mark.case(15)
def test_of_two_promoters_one_wins_and_the_other_is_told_who(home: Home, trials: Trials) -> None:
    """Both decide against the current champion. The second one decides against a former champion, and is refused."""
    with start_promoters(home, promote) as race:
        for trial in trials(short=1, full=500):
            champion = open_ledger(home).champion(MODEL)
            better, worse = trial.random.sample([number for number in (1, 2, 3, 4) if number != champion], 2)
            against: Against = "none" if champion is None else champion
            requests = [(better, against), (worse, against)]
            answers = race(requests)
            assert sorted(answer == "won" for answer in answers) == [False, True], answers
            winner = (better, worse)[answers.index("won")]
            (loser,) = (answer for answer in answers if answer != "won")
            assert loser.startswith(f"the champion is now {MODEL}/{winner} (by p{winner}")
            last = open_ledger(home).rows(MODEL)[-1]
            sync_mlflow_to_ledger(home, MODEL)
            assert (last.version, last.champion_before) == (winner, champion)
            assert open_tracking(home).aliases(MODEL) == {"champion": winner}
            trial.note(races=1, two_winners=0, alias_not_of_the_ledger=0)
    assert open_ledger(home).verify(MODEL) == []
