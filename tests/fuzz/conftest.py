"""Fuzzing budget: a few fixed examples in `make test`; in a soak as many as fit into ten minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck

from tests.support.trials import Trials

SECONDS, ROUNDS = 10.0, 10  # of a soak, for each of six tests
EXAMPLES = 40  # in `make test`, and between two checks of the time

Fuzz = Callable[[Callable[..., None]], None]


@pytest.fixture
def fuzz(trials: Trials) -> Fuzz:
    """Return a function that runs a hypothesis property. In a soak each round has a different seed."""
    quiet: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

    def run(prop: Callable[..., None]) -> None:
        hypothesis.settings(max_examples=EXAMPLES, derandomize=not trials.soak, **quiet)(prop)
        for trial in trials(short=1, full=ROUNDS):
            if not trials.soak:
                prop()
                continue
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                hypothesis.seed(trial.random.getrandbits(64))(prop)()
                trial.note(examples=EXAMPLES, errors_of_others=0)

    return run
