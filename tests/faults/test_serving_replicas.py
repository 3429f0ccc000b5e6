"""Replicas under Ray Serve: each follows the ledger, and one that is killed under load costs no request."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from remint.runtime.home import Home
from tests.support import promotion_cases as cases
from tests.support.processes import query_or_default
from tests.support.serving import Serving, serving
from tests.support.trials import Trials

REPLICAS = 2


def replicas(server: Serving) -> list[psutil.Process]:
    """Return the processes of the replicas that are alive."""
    assert server.process is not None
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [each for each in children if "ServeReplica" in query_or_default(lambda each=each: " ".join(each.cmdline()), "")]


@pytest.mark.soak
@pytest.mark.case(35)
def test_killed_replicas_cost_no_request_and_all_follow_the_ledger(registered: Home, trials: Trials, tmp_path: Path) -> None:
    """The front asks another replica, so that even requests in flight at the killed one are answered, without a client's retry."""
    home = cases.copy_home(registered, tmp_path / "home")
    cases.append_row(home, "promoted", 1)
    options = ("--engine", "ray", "--replicas", str(REPLICAS))
    with serving(home, tmp_path / "team", None, options=options) as server:
        for trial in trials(short=1, full=10):
            number = server.version() % 3 + 1
            with server.asked(clients=4) as problems:
                server.wait_for(lambda: len(replicas(server)) == REPLICAS)
                time.sleep(trial.random.uniform(0.0, 1.0))
                trial.random.choice(replicas(server)).kill()
                cases.append_row(home, "promoted", number)
                server.wait_for(lambda: len(replicas(server)) == REPLICAS)
                server.wait_for(lambda number=number: {server.version() for _ in range(20)} == {number})
            assert problems == []
            trial.note(kills=1, failed=len(problems))
        assert httpx.get(f"{server.address}/readyz").status_code == 200
        assert server.process is not None
        server.process.terminate()
        assert server.process.wait(60) == 128 + signal.SIGTERM
