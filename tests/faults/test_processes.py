"""Child processes do not outlive their parent: real processes, really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from remint.errors import Interrupted
from remint.runtime import jobs, processes
from remint.runtime.home import Home
from tests.support.processes import ends_within, is_alive, wait_for

PARENT = """
import os, sys
from pathlib import Path
from remint.runtime import processes
processes.run_process([sys.executable, "-c", CHILD], cwd=Path.cwd(), env=os.environ, log=Path("log"))
"""
CHILD = "from remint.runtime.parent import die_with_parent; die_with_parent(); import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('pid', 'w').write('1'); time.sleep(600)"


def test_a_child_dies_with_its_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT.replace("CHILD", repr(CHILD))], cwd=tmp_path)
    child = int(wait_for(tmp_path / "pid"))
    assert is_alive(child)
    parent.kill()
    parent.wait()
    assert ends_within(child)


def test_a_child_whose_parent_is_already_dead_ends_at_once(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    status = processes.run_process(
        [sys.executable, "-c", f"import os; os.environ['REMINT_PARENT'] = '{dead.pid}'; {CHILD}"],
        cwd=tmp_path,
        env=os.environ,
        log=tmp_path / "log",
    )
    assert status == 128 + signal.SIGTERM
    assert not (tmp_path / "pid").exists()


def test_ctrl_c_stops_the_process_group_and_raises_interrupted(tmp_path: Path) -> None:
    def stop_soon() -> None:
        wait_for(tmp_path / "pid")
        processes.stopping.set()

    threading.Thread(target=stop_soon).start()
    try:
        with pytest.raises(Interrupted, match="run the same command again"):
            processes.run_process([sys.executable, "-c", CHILD], cwd=tmp_path, env=os.environ, log=tmp_path / "log")
    finally:
        processes.stopping.clear()
    assert ends_within(int((tmp_path / "pid").read_text()), seconds=1.0)


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.3)
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], cwd=tmp_path, start_new_session=True)
    wait_for(tmp_path / "pid")
    processes.stop(child)
    assert child.wait(timeout=5) == -signal.SIGKILL


def test_events_are_read_as_they_come_in_complete_lines(tmp_path: Path) -> None:
    writer = "import time; f = open('events', 'a', buffering=1); f.write('{\"a\": 1}\\n{\"a\"'); f.flush(); time.sleep(0.3); f.write(': 2}\\n')"
    seen: list[dict[str, int]] = []
    status = processes.run_process(
        [sys.executable, "-c", writer],
        cwd=tmp_path,
        env=os.environ,
        log=tmp_path / "log",
        events=tmp_path / "events",
        on_event=seen.append,
    )
    assert status == 0
    assert seen == [{"a": 1}, {"a": 2}]


def test_a_job_that_was_killed_is_found_dead_and_a_live_one_is_not(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "home").ensure()
    script = (
        "import time; from pathlib import Path; from remint.runtime import jobs; from remint.runtime.home import Home\n"
        f"with jobs.live(Home(Path({str(tmp_path)!r}), Path({str(home.path)!r})), pipeline='x') as job:\n"
        "    open('pid', 'w').write(job.id); time.sleep(600)\n"
    )
    victim = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    name = wait_for(tmp_path / "pid")
    with jobs.live(home, pipeline="y") as mine:
        assert jobs.dead(home) == []
        victim.kill()
        victim.wait()
        assert [job.id for job in jobs.dead(home)] == [name]
        assert mine.id != name
    assert [job.facts["pipeline"] for job in jobs.dead(home)] == ["x"]
