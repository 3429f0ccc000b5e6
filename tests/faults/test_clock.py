"""The wall clock jumps by a day: leases count beats and the ledger counts rows, so neither is affected."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remint.runtime.home import Home
from remint.stores.ledger.chain import Ledger
from tests.faults.test_leases import HOLDER, wait_for_line
from tests.support.clock import DAY, Clock, clock  # noqa: F401 (a fixture)
from tests.support.processes import wait_for
from tests.support.trials import Trials

SILENT = 1.0  # seconds without a beat after which a waiter takes over

# Appends a row for each number on standard input, and prints the number.
WRITER = """
import sys
from remint.stores.ledger.chain import Ledger
book = Ledger(sys.argv[1])
for number in iter(lambda: int(sys.stdin.readline() or 0), 0):
    book.append("m", "promoted", number, champion_after=number, who="gate", why="", evidence="e", expected_champion=number - 1 or None)
    print(number, flush=True)
"""


def start_process(program: str, *arguments: str, cwd: Path, clock: Clock, **more: int) -> subprocess.Popen[str]:  # noqa: F811
    environment = {**os.environ, **clock.environment}
    return subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=cwd, env=environment, text=True, **more)  # type: ignore[call-overload,no-any-return]


def test_the_shim_shifts_only_the_wall_clock(clock: Clock, tmp_path: Path) -> None:  # noqa: F811
    """The other tests rely on the shim: wall clocks jump, monotonic clocks do not."""
    print_clocks = "import time, datetime as d; print(time.time(), d.datetime.now().timestamp(), time.monotonic())"
    for shift in (0, DAY, -DAY):
        clock.set(shift)
        program = start_process(print_clocks, cwd=tmp_path, clock=clock, stdout=subprocess.PIPE)
        wall, also, other = map(float, program.communicate()[0].split())
        assert abs(wall - time.time() - shift) < 60 and abs(also - wall) < 60 and abs(other - time.monotonic()) < 60


@pytest.mark.case(22)
def test_no_lease_is_lost_or_kept_by_a_clock_that_jumps(trials: Trials, clock: Clock, tmp_path: Path) -> None:  # noqa: F811
    program = HOLDER.replace("600.0", str(SILENT))
    for trial in trials(short=1, full=20):
        home = Home(tmp_path, tmp_path / f"home{trial.number}").ensure()
        folders = [tmp_path / f"{who}{trial.number}" for who in ("first", "second")]
        for folder in folders:
            folder.mkdir()
        clock.set(0)
        first = start_process(program, str(home.path), "elsewhere", cwd=folders[0], clock=clock)
        wait_for(folders[0] / "said")
        wait_for_line(folders[0], "has 1")
        second = start_process(program, str(home.path), "", cwd=folders[1], clock=clock)
        wait_for(folders[1] / "said")
        for _ in range(4):  # both processes see the jumps
            clock.set(trial.random.choice([DAY, -DAY, 0]))
            time.sleep(SILENT * 0.75)
        said = [(folder / "said").read_text().split("\n") for folder in folders]
        assert [[line.partition(" ")[0] for line in lines if line] for lines in said] == [["has"], ["waits"]]
        first.kill()
        first.wait()
        clock.set(trial.random.choice([DAY, -DAY]))
        assert wait_for_line(folders[1], "has") == "has 2"
        second.kill()
        second.wait()
        trial.note(early_expiries=0, late_expiries=0)


@pytest.mark.case(22)
def test_rows_of_the_ledger_keep_their_order(trials: Trials, clock: Clock, tmp_path: Path) -> None:  # noqa: F811
    for trial in trials(short=1, full=20):
        url = f"sqlite:///{tmp_path}/ledger{trial.number}.db"
        writer = start_process(WRITER, url, cwd=tmp_path, clock=clock, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert writer.stdin and writer.stdout
        for number in range(1, 7):
            clock.set((-1) ** number * DAY if number < 3 else trial.random.randrange(-DAY, DAY))
            writer.stdin.write(f"{number}\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == f"{number}\n"
        writer.stdin.close()
        writer.wait()
        book = Ledger(url)
        rows = book.rows("m")
        assert [row.version for row in rows] == list(range(1, 7)) and book.verify("m") == []
        assert rows != sorted(rows, key=lambda row: row.at), "the clock did jump"
        assert book.champion("m") == 6
        trial.note(out_of_order=0)
