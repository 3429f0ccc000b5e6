"""Who retrains a pipeline now: one job at a time, by a lease in the ledger's database.

A holder raises a counter every BEAT seconds. A lease is free when its holder gave it back, or

    on the holder's own host    no process of its job is left: the kernel tells at once (runtime/jobs.py), nothing else counts
    on any other                the counter stood still for SILENT seconds of the waiter's own monotonic clock

and is then taken over by compare-and-swap on (term, counter). No wall clock is compared with another, and none that jumps is
read: ``since`` is for people. A holder that slept too long finds its term gone and stops (``check``, ``confirm``).

What it protects is work: two trainings of the same thing at once, one for nothing. What is registered and promoted is kept
right without it, by what cannot be late: a key has one version (remint.stores.mlflow), and a row of the ledger follows the
champion that it was decided against. So a holder may lose its lease between ``confirm`` and what it confirmed for, and all
that comes of it is a version that the other one finds there.
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

BEAT = 5.0  # seconds between two beats of a holder
SILENT = 60.0  # seconds of a waiter's clock without a beat, after which the lease of another host's job is free
LOOK = 1.0  # seconds between two looks of a waiter


@dataclass(frozen=True)
class Holder:
    """Who has a lease. ``machine``: host and kernel, since host names come twice. ``folder``: of its job, on that host."""

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
    def words(self) -> str:
        since = f"{self.since[:10]} {self.since[11:19]} UTC"
        return f"{self.pipeline} is being retrained by job {self.job} (process {self.pid} on {self.host}, since {since})"

    def is_over(self) -> bool | None:
        """Whether the job has ended; None where that cannot be told from here."""
        if self.machine != machine() or not Path(self.folder).exists():
            return None
        return jobs.is_over(Path(self.folder))


@dataclass(frozen=True)
class Standing:
    """One lease as it stands in the database."""

    term: int
    beats: int
    holder: Holder | None


class Leases:
    """The leases at one database address. Raises what schema.open_database raises."""

    def __init__(self, url: str) -> None:
        self._database = open_database(url)

    def look(self, name: str) -> Standing:
        def read() -> Standing:
            with self._database.read() as connection:
                return _standing(connection, name)

        return self._database.again(read)

    def take(self, name: str, holder: Holder, seen: Standing) -> int | None:
        """The term in which ``holder`` has the lease from now on; None where it is no longer as it was ``seen``."""

        def once() -> int | None:
            with self._database.write(f"lease {name}") as connection:
                now = _standing(connection, name)
                if now.holder == holder:
                    return now.term  # the reply to our commit was lost, not the commit
                if now != seen:
                    return None
                row = {"term": now.term + 1, "beats": 0, "holder": json.dumps(asdict(holder))}
                changed = connection.execute(_rows.update().where(_rows.c.name == name).values(**row))
                if not changed.rowcount:
                    connection.execute(_rows.insert().values(name=name, **row))
                return now.term + 1

        return self._database.again(once)

    def beat(self, name: str, term: int) -> bool:
        """Raises the counter. False where somebody took the lease over."""
        return self._change(name, term, beats=_rows.c.beats + 1)

    def release(self, name: str, term: int) -> None:
        self._change(name, term, holder="")

    def _change(self, name: str, term: int, **values: object) -> bool:
        def once() -> bool:
            with self._database.write(f"lease {name}") as connection:
                of_term = sa.and_(_rows.c.name == name, _rows.c.term == term)
                return connection.execute(_rows.update().where(of_term).values(**values)).rowcount == 1

        return self._database.again(once)


class Lease:
    """A lease while it is held: a thread of the job's process keeps it, and ends with it."""

    def __init__(self, leases: Leases, name: str, holder: Holder, term: int) -> None:
        self._leases, self.name, self.holder, self.term = leases, name, holder, term
        self._lost, self._ended = threading.Event(), threading.Event()
        self._owner = threading.current_thread()
        threading.Thread(target=self._keep, name=f"lease {name}", daemon=True).start()

    def check(self) -> None:
        """Raises LeaseLost where the thread has found it lost. Asks nobody."""
        if self._lost.is_set():
            now = self._leases.look(self.name).holder
            by = f": {now.words}" if now else ""
            raise LeaseLost(
                f"{self.holder.pipeline}: this job did not answer for {SILENT:.0f} s, and its lease was taken over{by}; "
                "nothing more is done here: run again"
            )

    def confirm(self) -> None:
        """Raises LeaseLost where it is lost by now. Asks the database."""
        if not self._leases.beat(self.name, self.term):
            self._lost.set()
        self.check()

    def give_back(self) -> None:
        self._ended.set()
        with suppress(LedgerError):  # the database is away: whoever wants the lease sees that the job has ended
            self._leases.release(self.name, self.term)

    def _keep(self) -> None:
        while not self._ended.wait(BEAT) and self._owner.is_alive():
            try:
                if not self._leases.beat(self.name, self.term):
                    self._lost.set()
                    return
            except LedgerError:
                continue  # the database is away, for others as well; the next beat tells


@contextmanager
def held(
    home: Home, name: str, holder: Holder, say: Callable[[str], None], *, waits: Callable[[Holder], bool] = lambda _: True
) -> Iterator[Lease]:
    """The lease ``name``, from when it is free to the end of the block.

    ``say`` is told who is waited for; ``waits``: whether this holder is to be waited for. Raises Busy, which names the
    holder, where not; Interrupted where Ctrl-C ended the waiting.
    """
    leases = Leases(home.ledger_url)
    lease = Lease(leases, name, holder, _taken(leases, name, holder, say, waits))
    try:
        yield lease
    finally:
        lease.give_back()


def _taken(leases: Leases, name: str, holder: Holder, say: Callable[[str], None], waits: Callable[[Holder], bool]) -> int:
    """The term in which the lease is ours."""
    seen, since = leases.look(name), time.monotonic()
    told, beaten = None, False  # who was told of; whether a beat was seen
    while True:
        over = True if seen.holder is None else seen.holder.is_over()
        if over or (over is None and time.monotonic() - since >= SILENT):
            term = leases.take(name, holder, seen)
            if term is not None:
                return term
        elif seen.holder and (beaten or over is False) and not waits(seen.holder):
            raise Busy(seen.holder.words)
        elif seen.holder and seen.holder != told:
            told = seen.holder
            say(f"{told.words}: this one begins when that has ended")
        if processes.stopping.wait(LOOK):
            raise Interrupted(f"interrupted while it waited: {told.words if told else name}")
        now = leases.look(name)
        if now != seen:
            beaten = now.term == seen.term and now.beats > seen.beats
            seen, since = now, time.monotonic()


def _standing(connection: sa.Connection, name: str) -> Standing:
    row = connection.execute(_rows.select().where(_rows.c.name == name)).one_or_none()
    if row is None:
        return Standing(0, 0, None)
    return Standing(row.term, row.beats, Holder(**json.loads(row.holder)) if row.holder else None)


def machine() -> str:
    """This host and its kernel's own name for this time that it is up."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}".strip()
