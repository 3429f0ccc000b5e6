"""Progress of an evaluation, and the line on an evaluation that takes long beside its training."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from remint.cli.terminal import Display
from remint.evaluation.progress import Progress
from remint.promotion.durations import OTHER, Durations


class Clock:
    """A clock that moves when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that reads the events so far."""
    monkeypatch.setenv("REMINT_EVENTS", str(tmp_path / "events"))
    return lambda: [
        {key: value for key, value in json.loads(line).items() if key != "at"}
        for line in (tmp_path / "events").read_text().splitlines()
    ]


def test_the_seconds_left_are_known_after_the_first_turn(clock: Clock, heard: Any) -> None:
    progress = Progress(2, speaks=True)
    with progress.begin("fd_domain"):
        for _ in progress.over(range(5)):
            with progress.loop(3) as tick:  # a loop inside: not counted
                for _ in range(3):
                    clock.now += 1.0
                    tick()
    with progress.begin("elbo"), progress.loop(100) as tick:
        for _ in range(100):
            clock.now += 0.25
            tick()
    progress.end()
    events = heard()
    first = [event["left"] for event in events if event.get("metric") == "fd_domain" and "left" in event]
    assert first == [12.0, 9.0, 6.0, 3.0]  # 3 s a turn
    second = [event["left"] for event in events if event.get("metric") == "elbo" and "left" in event]
    assert second[0] == 24.75 and second == sorted(second, reverse=True)
    assert 15 < len(second) < 25, "about one event a second"
    assert [event for event in events if "left" not in event] == [
        {"event": "progress", "step": 0, "steps": 2, "metric": "fd_domain"},
        {"event": "progress", "step": 1, "steps": 2, "metric": "elbo"},
        {"event": "progress", "step": 2, "steps": 2},
        {"event": "measured", "seconds": {"fd_domain": 15.0, "elbo": 25.0}},
    ]


def test_a_loop_that_is_left_early_does_not_hide_the_next_one(clock: Clock, heard: Any) -> None:
    progress = Progress(1, speaks=True)
    with progress.begin("nll"):
        with pytest.raises(ZeroDivisionError), progress.loop(2):
            raise ZeroDivisionError
        with progress.loop(2) as tick:
            clock.now += 5.0
            tick()
    assert heard()[-1]["left"] == 5.0


def test_other_ranks_do_not_speak(heard: Any, tmp_path: Path) -> None:
    progress = Progress(1)
    with progress.begin("nll"):
        assert list(progress.over(range(3))) == [0, 1, 2]
    progress.end()
    assert not (tmp_path / "events").exists()


@pytest.mark.parametrize(
    ("left", "words"), [(3.2, "about 3 s"), (119.0, "about 119 s"), (600.0, "about 10 min"), (8000.0, "about 2 h")]
)
def test_the_terminal_shows_the_time_left(left: float, words: str) -> None:
    fields = {"name": "evaluate", "step": 1, "steps": 4, "metric": "elbo", "left": left}
    assert Display()._text("progress", fields) == f"evaluates on held-out data 1/4  elbo, {words} left"


def durations(training: list[dict[str, Any]], passes: dict[str, float], total: float) -> Durations:
    made = Durations()
    for event in training:
        made.hear_training(event)
    made.hear_evaluation({"event": "measured", "seconds": passes})
    made.hear_evaluation({"event": "evaluated", "seconds": total})
    return made


TRAINED = [
    {"event": "progress", "seconds": 40.0},
    {"event": "metrics", "at": 3.0, "step": 7},
    {"event": "progress", "seconds": 100.0},
]


@pytest.mark.parametrize(
    ("passes", "metrics", "words"),
    [
        ({"elbo": 60.0, "fd_domain": 20.0}, ["elbo", "fd_domain"], "60 s were for elbo: a smaller evaluation.examples makes"),
        (
            {"iwae": 60.0, "fd_domain": 20.0},
            ["elbo", "iwae"],
            "60 s were for iwae: a smaller evaluation.importance_samples makes",
        ),
        ({"elbo": 60.0}, ["iwae", "elbo"], "60 s were for elbo: a smaller evaluation.importance_samples makes"),
        ({"nll": 5.0, "fd_domain": 80.0}, ["nll", "fd_domain"], "80 s were for fd_domain: a smaller evaluation.draws makes"),
        ({"fd_domain_floor": 80.0}, ["fd_domain"], "80 s were for fd_domain_floor: a smaller evaluation.draws makes"),
        ({"nll": 5.0}, ["nll"], f"90 s were for {OTHER}"),
    ],
)
def test_a_long_evaluation_names_its_costliest_part_and_setting(passes: dict[str, float], metrics: list[str], words: str) -> None:
    note = durations(TRAINED, passes, 95.0).note(metrics)
    assert note is not None and note.startswith("the evaluation took 95 s, 95% of the 100 s of the training")
    assert words in note and note.endswith("cheaper" if "makes" in words else OTHER)


@pytest.mark.parametrize(
    ("training", "total"),
    [
        (TRAINED, 10.0),  # a tenth
        ([{"event": "progress", "seconds": 5.0}], 9.0),  # short
        ([], 95.0),  # restored from DVC
        ([{"event": "resumed", "step": 3}, *TRAINED], 95.0),  # its earlier seconds are not known
    ],
)
def test_a_cheap_evaluation_and_one_that_cannot_be_compared_get_no_line(training: list[dict[str, Any]], total: float) -> None:
    assert durations(training, {"nll": total}, total).note(["nll"]) is None


def test_the_rate_of_steps_is_that_between_the_last_two_rows_of_the_curve() -> None:
    made, found = Durations(), []
    rows = [(10.0, 20), (12.0, 60), (13.0, 70), (14.0, 50), (14.0, 60), (16.0, 70)]  # the fourth went back to a checkpoint
    for at, step in rows:
        made.hear_training({"event": "metrics", "at": at, "step": step})
        found.append(made.steps_per_second)
    assert found == [None, 20.0, 10.0, None, None, 5.0]
