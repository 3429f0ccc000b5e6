"""Each command in a new process: other tests fork most of theirs (tests/support/preloaded.py)."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.team import Team

SAME = (
    ("models", "--json"),
    ("why", "digits-vae", "--json"),
    ("history", "digits-vae", "--json"),
    ("doctor", "--json"),
    ("audit", "--json"),
    ("gc", "--json"),
)


@pytest.mark.parametrize("command", SAME, ids=lambda command: command[0])
def test_new_and_forked_processes_print_the_same(served_team: Team, command: tuple[str, ...]) -> None:
    assert served_team.remint(*command, new=True).stdout == served_team.remint(*command).stdout


def test_new_and_forked_processes_draw_the_same_samples(served_team: Team, tmp_path: Path) -> None:
    for new in (True, False):
        served_team.remint("sample", "digits-vae", "-n", "3", "-o", str(tmp_path / f"{new}.npy"), new=new)
    assert (tmp_path / "True.npy").read_bytes() == (tmp_path / "False.npy").read_bytes()


def test_a_stopped_command_leaves_no_file(trained_team: Team, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    drawing = trained_team.start("sample", "digits-vae", "-n", "10000000", "-o", str(out / "x.npy"), log=tmp_path / "log")
    deadline = time.monotonic() + 60
    while not list(out.glob(".remint-*/*")):
        assert drawing.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    drawing.terminate()
    assert drawing.wait(60) == 128 + signal.SIGTERM and not list(out.iterdir())


@pytest.mark.soak
def test_a_new_process_reuses_the_training_of_a_forked_one(served_team: Team) -> None:
    """Settings, code and data are the same, so the keys of the steps are too."""
    assert "nothing was trained" in served_team.remint("run", "digits-vae", new=True).stdout
    assert served_team.remint("deploy", "--json", new=True).stdout == "[]\n"


@pytest.mark.soak
def test_invalid_decisions_in_new_processes_are_refused(served_team: Team) -> None:
    again = served_team.remint("promote", "digits-vae", "--reason", "again", status=2, new=True).stderr
    assert "is the champion already" in again
    assert "error: " in served_team.remint("reject", "digits-vae/9", "--reason", "no", status=2, new=True).stderr
    assert "error: " in served_team.remint("rollback", "digits-vae", "--reason", "no", status=2, new=True).stderr
    assert "unknown model" in served_team.remint("compare", "digits-vea", status=2, new=True).stderr
    assert "error: " in served_team.remint("rebuild", "digits-vae/9", status=2, new=True).stderr
    assert "unknown pipeline" in served_team.remint("spread", "digits-vea", status=2, new=True).stderr
