"""Leases in the ledger's database: one job at a time retrains a pipeline.

A holder increments a counter every BEAT seconds. A lease is free when its holder released it, or

    on the holder's host        when no process of its job is left: the kernel knows at once (runtime/jobs.py)
    on any other host           when the counter did not change for SILENT seconds of the waiter's own monotonic clock

It is then taken over by compare-and-swap on (term, counter). No two wall clocks are compared, and none decides: ``since`` is
for people. A holder that was paused too long finds that its term is over and stops (``check``, ``confirm``).

A lease only saves work: it prevents that two jobs train the same thing at once. The registry and the ledger are correct
without it: a key has one version (remint.stores.mlflow), and a row of the ledger names the champion that it was decided
against. So a holder may lose its lease just after ``confirm``: then both jobs train, and the second finds the first's version.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from remint.errors import Busy, Interrupted, LeaseLost, LedgerError
from remint.runtime import jobs, processes
from remint.runtime.home import Home
from remint.stores.ledger.schema import leases as _rows
from remint.stores.ledger.schema import open_database

BEAT = 5.0  # seconds between two increments by a holder
SILENT = 60.0  # seconds of a waiter's clock without an increment, after which the lease of another host's job is free
POLL = 1.0  # seconds between two reads by a waiter


@dataclass(frozen=True)
class Holder:
    """Holder of a lease. ``machine``: host and boot id, as two hosts may have one name. ``folder``: of its job, on that host."""

    pipeline: str
    job: str
    flow_run: str
    host: str
    machine: str
    pid: int
    since: str
    folder: str

    @classmethod
    def of(cls, pipeline: str, job: jobs.Job) -> Holder:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        flow_run, folder = job.facts.get("flow_run", ""), str(job.folder.absolute())
        return cls(pipeline, job.id, flow_run, socket.gethostname(), machine(), os.getpid(), since, folder)

    @property
    def description(self) -> str:
        since = f"{self.since[:10]} {self.since[11:19]} UTC"
        return f"{self.pipeline} is being retrained by job {self.job} (process {self.pid} on {self.host}, since {since})"

    def is_over(self) -> bool | None:
        """Return whether the job has ended; None if this host cannot know."""
        if self.machine != machine() or not Path(self.folder).exists():
            return None
        return jobs.is_over(Path(self.folder))


@dataclass(frozen=True)
class LeaseState:
    """State of one lease in the database."""

    term: int
    beats: int
    holder: Holder | None


class Leases:
    """Leases at one database address. Raises the errors of schema.open_database."""

    def __init__(self, url: str) -> None:
        self._database = open_database(url)

    def read(self, name: str) -> LeaseState:
        def read() -> LeaseState:
            with self._database.read() as connection:
                return _state_of(connection, name)

        return self._database.run(read)

    def take(self, name: str, holder: Holder, seen: LeaseState) -> int | None:
        """Give the lease to ``holder``. Return its new term, or None if the lease has changed since ``seen``."""

        def transaction() -> int | None:
            with self._database.write(f"lease {name}") as connection:
                now = _state_of(connection, name)
                if now.holder == holder:
                    return now.term  # the first commit succeeded, only its reply was lost
                if now != seen:
                    return None
                row = {"term": now.term + 1, "beats": 0, "holder": json.dumps(asdict(holder))}
                changed = connection.execute(_rows.update().where(_rows.c.name == name).values(**row))
                if not changed.rowcount:
                    connection.execute(_rows.insert().values(name=name, **row))
                return now.term + 1

        return self._database.run(transaction)

    def beat(self, name: str, term: int) -> bool:
        """Increment the counter. Return False if another job has taken the lease over."""
        return self._change(name, term, beats=_rows.c.beats + 1)

    def release(self, name: str, term: int) -> None:
        self._change(name, term, holder="")

    def _change(self, name: str, term: int, **values: object) -> bool:
        def transaction() -> bool:
            with self._database.write(f"lease {name}") as connection:
                of_term = sa.and_(_rows.c.name == name, _rows.c.term == term)
                return connection.execute(_rows.update().where(of_term).values(**values)).rowcount == 1

        return self._database.run(transaction)


class Lease:
    """A held lease. A thread of the job's process keeps it alive."""

    def __init__(self, leases: Leases, name: str, holder: Holder, term: int) -> None:
        self._leases, self.name, self.holder, self.term = leases, name, holder, term
        self._lost, self._ended = threading.Event(), threading.Event()
        self._owner = threading.current_thread()
        threading.Thread(target=self._keep, name=f"lease {name}", daemon=True).start()

    def check(self) -> None:
        """Raise LeaseLost if the thread has found the lease lost. Sends no request otherwise."""
        if self._lost.is_set():
            now = self._leases.read(self.name).holder
            by = f": {now.description}" if now else ""
            raise LeaseLost(
                f"{self.holder.pipeline}: this job did not answer for {SILENT:.0f} s, and its lease was taken over{by}; "
                "this job stops: run again"
            )

    def confirm(self) -> None:
        """Ask the database. Raise LeaseLost if the lease is lost."""
        if not self._leases.beat(self.name, self.term):
            self._lost.set()
        self.check()

    def give_back(self) -> None:
        self._ended.set()
        with suppress(LedgerError):  # the database is out of reach: waiters notice that the job has ended
            self._leases.release(self.name, self.term)

    def _keep(self) -> None:
        while not self._ended.wait(BEAT) and self._owner.is_alive():
            try:
                if not self._leases.beat(self.name, self.term):
                    self._lost.set()
                    return
            except LedgerError:
                continue  # the database is out of reach, for other hosts too: the next increment decides


@contextmanager
def held(
    home: Home, name: str, holder: Holder, say: Callable[[str], None], *, waits: Callable[[Holder], bool] = lambda _: True
) -> Iterator[Lease]:
    """Wait until the lease ``name`` is free and hold it to the end of the block.

    ``say`` gets a line about each holder that is waited for; ``waits`` returns whether to wait for a holder. Raises Busy,
    which names the holder, if not; Interrupted if Ctrl-C ended the wait.
    """
    leases = Leases(home.ledger_url)
    lease = Lease(leases, name, holder, _acquire(leases, name, holder, say, waits))
    try:
        yield lease
    finally:
        lease.give_back()


def _acquire(leases: Leases, name: str, holder: Holder, say: Callable[[str], None], waits: Callable[[Holder], bool]) -> int:
    """Acquire the lease and return its term."""
    seen, since = leases.read(name), time.monotonic()
    reported, beating = None, False  # holder that ``say`` was told of; whether its counter was seen to change
    while True:
        over = True if seen.holder is None else seen.holder.is_over()
        if over or (over is None and time.monotonic() - since >= SILENT):
            term = leases.take(name, holder, seen)
            if term is not None:
                return term
        elif seen.holder and (beating or over is False) and not waits(seen.holder):
            raise Busy(seen.holder.description)
        elif seen.holder and seen.holder != reported:
            reported = seen.holder
            say(f"{reported.description}: this job begins when that one has ended")
        if processes.stopping.wait(POLL):
            raise Interrupted(f"interrupted while waiting: {reported.description if reported else name}")
        now = leases.read(name)
        if now != seen:
            beating = now.term == seen.term and now.beats > seen.beats
            seen, since = now, time.monotonic()


def _state_of(connection: sa.Connection, name: str) -> LeaseState:
    row = connection.execute(_rows.select().where(_rows.c.name == name)).one_or_none()
    if row is None:
        return LeaseState(0, 0, None)
    return LeaseState(row.term, row.beats, Holder(**json.loads(row.holder)) if row.holder else None)


def machine() -> str:
    """Return this host's name and the boot id of its kernel."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}".strip()
