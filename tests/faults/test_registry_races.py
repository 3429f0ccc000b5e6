"""Sixteen simultaneous processes on a real SQLite file and a real PostgreSQL; killed writers and lost replies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from remint.errors import ChampionChanged, LedgerError
from remint.stores.ledger.chain import Ledger
from remint.stores.ledger.spreads import SeedSpread, Spreads
from remint.stores.mlflow import Tracking
from tests.support.old_ledger import COLLECTED, LEASES, LEDGER, OLD_HASHES, SPREADS, execute
from tests.support.postgres import Postgres
from tests.support.racers import context, race_process, run_together

PROCESSES = 16


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return str(request.getfixturevalue("postgres").url)


def own_address(url: str, name: object) -> str:
    """Return an address of the same database for this process only, so that no connection is shared across a fork."""
    return f"{url}&application_name=p{name}" if url.startswith("postgresql") else url


def promote(index: int, url: str, model: str) -> str:
    try:
        ledger = Ledger(own_address(url, index))
        ledger.append(
            model, "promoted", index + 1, champion_after=index + 1, who=f"p{index}", why="", evidence="", expected_champion=None
        )
    except ChampionChanged as error:
        return str(error)
    return "won"


def test_of_sixteen_simultaneous_promotions_one_wins(url: str) -> None:
    answers = run_together(promote, PROCESSES, url, "race")  # all of them also create the schema at once
    winners = [index + 1 for index, answer in enumerate(answers) if answer == "won"]
    ledger = Ledger(own_address(url, "reader"))
    assert len(winners) == 1
    assert [row.version for row in ledger.rows("race")] == winners and ledger.champion("race") == winners[0]
    losers = [answer for answer in answers if answer != "won"]
    assert len(losers) == PROCESSES - 1 and all(f"the champion is now version {winners[0]}" in answer for answer in losers)
    assert ledger.verify("race") == []


def open_and_refuse(index: int, url: str) -> list[str]:
    ledger = Ledger(own_address(url, f"m{index}"))
    row = {"who": f"p{index}", "why": "", "evidence": "e", "decision": f"{index:064x}"}
    ledger.append("digits-vae", "refused", 10 + index, champion_after=1, expected_champion=1, **row)
    return ledger.verify("digits-vae", known=OLD_HASHES)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_old_database_opened_by_sixteen_processes_is_migrated_once(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").database("migrated")
    execute(url, *LEDGER, *COLLECTED, *SPREADS, *LEASES)
    assert run_together(open_and_refuse, PROCESSES, url) == [[]] * PROCESSES
    ledger = Ledger(own_address(url, "reader"))
    decisions = {row.decision for row in ledger.rows("digits-vae")}
    assert decisions == {"", *(f"{index:064x}" for index in range(PROCESSES))}
    assert ledger.verify("digits-vae", known=OLD_HASHES) == []


def record_spread(index: int, url: str) -> str:
    spread = SeedSpread(pipeline="m", recipe="r", dataset="d", seeds=(index,), values={"nll": (float(index),)})
    Spreads(own_address(url, f"s{index}")).record(spread, f"p{index}")
    return "done"


def test_sixteen_simultaneous_seed_spreads_are_all_kept_and_the_newest_counts(url: str) -> None:
    assert run_together(record_spread, PROCESSES, url) == ["done"] * PROCESSES
    spreads = Spreads(own_address(url, "reader"))
    assert spreads.newest("another") is None
    last = SeedSpread(pipeline="m", recipe="r", dataset="d", seeds=(0, 1, 2), values={"nll": (1.9, 1.91, 1.89)})
    spreads.record(last, "ada")
    assert spreads.newest("m") == last and Spreads(own_address(url, "other")).newest("m") == last
    assert Ledger(own_address(url, "reader")).rows("m") == []  # the same database holds both


def append_refused(index: int, url: str) -> str:
    ledger = Ledger(own_address(url, f"r{index}"))
    for turn in range(5):
        row = {"who": f"p{index}", "why": str(turn), "evidence": ""}
        ledger.append("busy", "refused", 10 * index + turn, champion_after=None, expected_champion=None, **row)
    return "done"


def test_simultaneous_rows_without_a_conflict_are_all_written(url: str) -> None:
    assert run_together(append_refused, PROCESSES, url) == ["done"] * PROCESSES
    ledger = Ledger(own_address(url, "reader"))
    assert [row.sequence for row in ledger.rows("busy")] == list(range(1, 5 * PROCESSES + 1))
    assert ledger.verify("busy") == []


def append_until_killed(url: str, writing: Any) -> None:
    ledger, version = Ledger(own_address(url, "victim")), 0
    while True:
        version += 1
        ledger.append("killed", "refused", version, champion_after=None, who="w", why="", evidence="", expected_champion=None)
        if version == 3:
            writing.set()


def test_a_killed_writer_leaves_no_half_row_and_no_lock(url: str) -> None:
    writing = context.Event()
    for delay in (0.0, 0.013, 0.029):
        writing.clear()
        victim = race_process(append_until_killed, url, writing)
        victim.start()
        assert writing.wait(60)
        victim.join(delay)
        os.kill(victim.pid or 0, signal.SIGKILL)
        victim.join()
        ledger = Ledger(own_address(url, "after"))
        ledger.append(
            "killed", "refused", 0, champion_after=None, who="w", why="after the kill", evidence="", expected_champion=None
        )
        assert ledger.verify("killed") == []
    assert len(ledger.rows("killed")) >= 12  # the acknowledged rows before each kill, and one row after it


def count_up(index: int, uri: str, lock_url: str, folder: Path) -> int:
    """Read, wait and write: two processes inside the lock at once lose a count."""
    store = Tracking(uri, "", folder / f"host{index}" / "lock", lock_url)
    for _ in range(5):
        with store.exclusive_lock("model m"):
            seen = int((folder / "count").read_text())
            time.sleep(0.002)
            (folder / "count").write_text(str(seen + 1))
    return index


@pytest.mark.parametrize("tracked", ["on PostgreSQL", "by a server"])
def test_registrations_on_several_hosts_exclude_each_other_by_a_lock_in_postgres(
    postgres: Postgres, tmp_path: Path, tracked: str
) -> None:
    """Each process has its own lock file, like hosts that share only MLflow's database, or a server and the ledger's database."""
    (tmp_path / "count").write_text("0")
    direct = (postgres.url.replace("postgresql:", "postgresql+psycopg:"), f"sqlite:///{tmp_path}/ledger.db")
    addresses = direct if tracked == "on PostgreSQL" else ("http://mlflow.example.org", postgres.url)
    assert run_together(count_up, 6, *addresses, tmp_path) == list(range(6))
    assert (tmp_path / "count").read_text() == "30"


@pytest.mark.filterwarnings("error")
def test_a_reply_lost_after_the_commit_does_not_double_the_row(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy as sa

    ledger = Ledger(own_address(url, "lost"))
    real, lost = sa.engine.default.DefaultDialect.do_commit, []

    def commit(self: Any, connection: Any) -> None:
        real(self, connection)
        if not lost:
            lost.append(True)
            connection.dbapi_connection.close()
            real(self, connection)  # the driver's own error

    monkeypatch.setattr(sa.engine.default.DefaultDialect, "do_commit", commit)
    row = ledger.append("lost", "promoted", 1, champion_after=1, who="w", why="", evidence="", expected_champion=None)
    assert lost and ledger.rows("lost") == [row]


def test_an_unreachable_database_is_a_ledger_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setattr("remint.runtime.retry.time.sleep", lambda _: None)
    with pytest.raises(LedgerError, match="failed"):
        Ledger(f"postgresql://remint:hunter2@/postgres?host={tmp_path}")
