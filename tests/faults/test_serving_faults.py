"""A server beside the faults of its parts: killed in the middle of a switch, without its stores, over many switches."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest

from remint.runtime.home import Home
from remint.stores.ledger.serving_events import ServingEvents
from remint.stores.open import open_tracking
from tests.support import promotion_cases as cases
from tests.support import registry_cases
from tests.support.mlflow_server import run_server
from tests.support.postgres import Postgres
from tests.support.promotion_cases import MODEL
from tests.support.s3 import Proxy
from tests.support.serving import serving
from tests.support.trials import Trials

GROWTH = 64 << 20  # bytes of memory that a server may gain over SWITCHES switches
SWITCHES = 50


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    home = cases.copy_home(registered, tmp_path / "home")
    cases.append_row(home, "promoted", 1)
    return home


def promote(home: Home, number: int) -> None:
    """Promote a version that this machine has no copy of."""
    shutil.rmtree(home.copy(open_tracking(home).version(f"{MODEL}/{number}").key), ignore_errors=True)
    cases.append_row(home, "promoted", number)


@pytest.mark.case(31)
def test_a_server_that_is_killed_in_a_switch_serves_a_whole_version_afterwards(
    home: Home, programs: Path | None, trials: Trials, tmp_path: Path
) -> None:
    events = ServingEvents(home.ledger_url)
    with serving(home, tmp_path / "team", programs) as server:
        began = time.monotonic()
        promote(home, 2)
        server.wait_for(lambda: server.version() == 2)
        undisturbed = time.monotonic() - began
        for trial in trials(short=2, full=50):
            number = server.version() % 3 + 1
            promote(home, number)
            time.sleep(trial.random.uniform(0.0, undisturbed))
            server.kill()
            known = len(events.of(MODEL))
            switched = events.of(MODEL)[-1].version == number
            server.start()
            assert server.version() == number and server.sample().json()["values"] == server.alone(number)
            newest = events.of(MODEL)
            assert events.verify(MODEL) == [] and len(newest) == known + 1
            assert (newest[-1].event, newest[-1].version) == ("loaded", number)
            trial.note(kills=1, after_the_event=switched, not_whole=0)


Away = Callable[[], AbstractContextManager[None]]  # the store is away while the block runs
Stored = AbstractContextManager[tuple[Home, dict[str, str], Away]]  # a home, variables of its server, and its store's absence


@contextmanager
def ledger(home: Home, request: pytest.FixtureRequest) -> Iterator[tuple[Home, dict[str, str], Away]]:
    postgres: Postgres = request.getfixturevalue("postgres")
    request.getfixturevalue("monkeypatch").setenv("REMINT_LEDGER", postgres.database("served"))

    @contextmanager
    def away() -> Iterator[None]:
        postgres.stop()
        yield
        postgres.start()

    yield home, {}, away


@contextmanager
def mlflow(home: Home, request: pytest.FixtureRequest) -> Iterator[tuple[Home, dict[str, str], Away]]:
    request.getfixturevalue("monkeypatch").setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    with run_server(home.path) as server:

        @contextmanager
        def away() -> Iterator[None]:
            server.kill()
            yield
            server.start()

        yield home, {"MLFLOW_TRACKING_URI": server.address}, away


@contextmanager
def bucket(home: Home, request: pytest.FixtureRequest) -> Iterator[tuple[Home, dict[str, str], Away]]:
    proxy: Proxy = request.getfixturevalue("proxy")
    address = f"s3://{request.getfixturevalue('s3').bucket({})}"
    request.getfixturevalue("monkeypatch").setenv("REMINT_ARTIFACTS", address)
    home = cases.copy_home(Home(home.path, request.getfixturevalue("empty")), home.path.with_name("in-bucket"))
    for seed in range(2):
        cases.register_model(home, seed)

    @contextmanager
    def away() -> Iterator[None]:
        proxy.failing = 1.0
        yield
        proxy.failing = 0.0

    yield home, {}, away


@pytest.mark.case(32)
@pytest.mark.parametrize("store", [ledger, mlflow, bucket])
def test_a_server_goes_on_while_a_store_is_away_and_follows_when_it_is_back(
    store: Callable[..., Stored],
    registered: Home,
    programs: Path | None,
    trials: Trials,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """The store is away for a moment, in a soak for a minute. No request fails, and the champion of that time is served later."""
    for trial in trials(short=1, full=1):
        seconds = 60.0 if trials.soak else 1.0
        with store(cases.copy_home(registered, tmp_path / "home"), request) as (home, environment, away):
            cases.append_row(home, "promoted", 1)
            with serving(home, tmp_path / "team", programs, **environment) as server:
                with server.asked(clients=2) as problems:
                    with away():
                        if store is not ledger:
                            promote(home, 2)
                        end = time.monotonic() + seconds
                        while time.monotonic() < end:
                            assert server.version() == 1
                            time.sleep(0.1)
                    if store is ledger:
                        promote(home, 2)
                    server.wait_for(lambda: server.version() == 2)
                assert problems == []
            found = ServingEvents(home.ledger_url)
            assert [(event.event, event.version) for event in found.of(MODEL)] == [("loaded", 1), ("switched", 2)]
            trial.note(seconds_away=seconds, failed=0)


@pytest.mark.soak
@pytest.mark.case(33)
def test_memory_over_fifty_switches(empty: Path, trials: Trials, tmp_path: Path) -> None:
    """Each version has weights of several megabytes: a version that is kept after its time would be seen."""
    for trial in trials(short=1, full=1):
        home = cases.copy_home(Home(empty, empty), tmp_path / "home")
        for seed in range(3):
            registry_cases.make_bundle(home.path / "bundles" / str(seed), seed, hidden=1024)
            cases.register_model(home, seed)
        weights = (home.path / "bundles/0/weights.safetensors").stat().st_size
        assert SWITCHES * weights > 4 * GROWTH, "a leak would be seen"
        cases.append_row(home, "promoted", 1)
        with serving(home, tmp_path / "team", None) as server, server.asked(clients=2) as problems:
            assert server.process is not None
            process, before = psutil.Process(server.process.pid), 0
            for place in range(5 + SWITCHES):
                number = (place + 1) % 3 + 1
                cases.append_row(home, "promoted", number)
                server.wait_for(lambda number=number: server.version() == number)
                if place == 4:  # the allocator has its caches by now
                    before = process.memory_info().rss
            grown = process.memory_info().rss - before
        assert problems == [] and grown < GROWTH
        trial.note(switches=SWITCHES, grown_mib=round(grown / 2**20, 1), weights_mib=round(weights / 2**20, 1))
