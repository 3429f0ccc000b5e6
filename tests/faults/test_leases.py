"""One retraining of a pipeline at a time: real holders, killed and suspended, on real databases."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from remint.errors import Busy, Interrupted, LeaseLost
from remint.runtime import jobs, processes
from remint.runtime.home import Home
from remint.stores.ledger import leases
from tests.support.postgres import Postgres
from tests.support.trials import Trials

# Takes the lease of "m" and keeps it. Writes each message, and the loss of the lease, to the file "said".
HOLDER = """
import os, sys, time
from pathlib import Path
from remint.runtime import jobs
from remint.stores.ledger import leases
from remint.errors import LeaseLost
from remint.runtime.home import Home
place, machine = sys.argv[1:3]
leases.BEAT, leases.POLL, leases.SILENT = 0.1, 0.1, 600.0
if machine:
    leases.machine = lambda: machine
out = open("said", "a", buffering=1)
home = Home(Path("."), Path(place))
with jobs.live(home, pipeline="m", flow_run="") as job:
    with leases.held(home, "m", leases.Holder.of("m", job), lambda text: out.write(f"waits {text}\\n")) as lease:
        out.write(f"has {lease.term}\\n")
        while True:
            time.sleep(0.05)
            try:
                lease.check()
            except LeaseLost as error:
                out.write(f"lost {error}\\n")
                break
"""


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases with about a hundredth of their usual times; the full trials of case 16 use longer ones."""
    monkeypatch.setattr(leases, "BEAT", 0.1)
    monkeypatch.setattr(leases, "POLL", 0.1)
    monkeypatch.setattr(leases, "SILENT", 1.5)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "home").ensure()


@pytest.fixture
def start_holder(home: Home, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Function that starts a holder in its own folder, and waits until it has written ``word``."""
    with ExitStack() as stack:

        def start(name: str, machine: str = "", word: str = "has") -> subprocess.Popen[bytes]:
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            process = subprocess.Popen([sys.executable, "-c", HOLDER, str(home.path), machine], cwd=folder)
            stack.callback(process.wait)
            stack.callback(process.kill)
            wait_for_line(folder, word)
            return process

        yield start


def wait_for_line(folder: Path, word: str) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        lines = (folder / "said").read_text().splitlines() if (folder / "said").exists() else []
        for line in lines:
            if line.startswith(word):
                return line
        time.sleep(0.02)
    raise AssertionError(f"{folder.name} did not say {word!r}")


def take_lease(home: Home, messages: list[str] | None = None, **options: object) -> int:
    """Take the lease of "m" as a job of this process and release it. Return its term."""
    with jobs.live(home, pipeline="m", flow_run="") as job:
        holder = leases.Holder.of("m", job)
        with leases.held(home, "m", holder, (messages if messages is not None else []).append, **options) as lease:  # type: ignore[arg-type]
            lease.confirm()
            return lease.term


def test_a_released_lease_can_be_taken_again(home: Home) -> None:
    assert [take_lease(home) for _ in range(3)] == [1, 2, 3]


def test_jobs_of_different_pipelines_do_not_wait_for_each_other(home: Home) -> None:
    with ExitStack() as stack:
        for name in ("a", "b", "c"):
            job = stack.enter_context(jobs.live(home, pipeline=name, flow_run=""))
            refuse = lambda _: False  # noqa: E731
            stack.enter_context(leases.held(home, name, leases.Holder.of(name, job), print, waits=refuse))


def test_the_second_job_waits_for_the_first_and_names_it(
    home: Home, start_holder: Callable[..., subprocess.Popen[bytes]]
) -> None:
    first = start_holder("first")
    messages: list[str] = []
    terms: list[int] = []
    second = threading.Thread(target=lambda: terms.append(take_lease(home, messages)))
    second.start()
    time.sleep(3 * leases.SILENT)  # a live holder on this host never loses its lease
    assert not terms
    (line,) = messages
    assert f"process {first.pid} on {leases.Holder.of('m', jobs.Job(home.jobs / 'x')).host}" in line and "since" in line
    first.kill()
    second.join(timeout=10)
    assert terms == [2]


def test_a_job_that_does_not_wait_is_refused(home: Home, start_holder: Callable[..., subprocess.Popen[bytes]]) -> None:
    first = start_holder("first")
    with pytest.raises(Busy, match=rf"m is being retrained by job .* \(process {first.pid} on"):
        take_lease(home, waits=lambda _: False)


def test_ctrl_c_ends_the_waiting(home: Home, start_holder: Callable[..., subprocess.Popen[bytes]]) -> None:
    start_holder("first")
    threading.Timer(0.3, processes.stopping.set).start()
    try:
        with pytest.raises(Interrupted, match="while waiting: m is being retrained by job"):
            take_lease(home)
    finally:
        processes.stopping.clear()


def test_a_suspended_holder_on_this_host_keeps_its_lease(
    home: Home, start_holder: Callable[..., subprocess.Popen[bytes]]
) -> None:
    first = start_holder("first")
    first.send_signal(signal.SIGSTOP)
    time.sleep(2 * leases.SILENT)
    with pytest.raises(Busy):
        take_lease(home, waits=lambda _: False)


def test_a_suspended_holder_on_another_host_loses_its_lease(
    home: Home, start_holder: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    first = start_holder("first", "elsewhere")
    first.send_signal(signal.SIGSTOP)
    assert take_lease(home) == 2
    first.send_signal(signal.SIGCONT)
    assert "its lease was taken over" in wait_for_line(tmp_path / "first", "lost")


def test_a_lost_lease_is_noticed_before_an_effect(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before the next beat: ``confirm`` asks the database."""
    monkeypatch.setattr(leases, "BEAT", 600.0)
    with jobs.live(home, pipeline="m", flow_run="") as job:
        holder = leases.Holder.of("m", job)
        with leases.held(home, "m", holder, print) as lease:
            lease.confirm()
            book = leases.Leases(home.ledger_url)
            other = leases.Holder.of("m", jobs.Job(home.jobs / "other"))
            assert book.take("m", other, book.read("m")) == 2
            lease.check()  # it does not know yet
            with pytest.raises(LeaseLost, match="taken over: m is being retrained by job other"):
                lease.confirm()
        assert book.read("m").holder == other, "a job that lost its lease does not give away another's"


def test_only_one_of_many_waiters_takes_over_the_lease(home: Home) -> None:
    """Compare-and-swap: of all waiters that saw the same dead holder one wins."""
    book = leases.Leases(home.ledger_url)
    dead = leases.Holder.of("m", jobs.Job(home.jobs / "gone"))
    book.take("m", dead, book.read("m"))
    seen, won = book.read("m"), []
    rivals = [leases.Holder.of("m", jobs.Job(home.jobs / str(number))) for number in range(8)]
    threads = [threading.Thread(target=lambda each=each: won.append(book.take("m", each, seen))) for each in rivals]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(term for term in won if term) == [2] and won.count(None) == 7


@pytest.mark.case(16)
@pytest.mark.parametrize("machine", ["", "elsewhere"])
def test_free_again_when_holder_and_server_were_killed(
    postgres: Postgres,
    trials: Trials,
    tmp_path: Path,
    machine: str,
    start_holder: Callable[..., subprocess.Popen[bytes]],
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if trials.soak:
        monkeypatch.setattr(leases, "SILENT", 60.0)
        monkeypatch.setattr(leases, "BEAT", 5.0)
    for trial in trials(short=1, full=5):
        name = f"lease{trial.number}{machine}"
        monkeypatch.setenv("REMINT_LEDGER", postgres.database(name))
        holder = start_holder(name, machine)
        time.sleep(trial.random.uniform(0.0, 0.3))
        postgres.stop()
        holder.kill()
        holder.wait()
        began = time.monotonic()
        postgres.start()
        assert take_lease(home) == 2
        assert time.monotonic() - began < 120.0
        trial.note(taken_over=1, after_120_s=0)
