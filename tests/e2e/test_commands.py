"""Each command in a process of its own: the other tests fork most of theirs (tests/support/preloaded.py)."""

from __future__ import annotations

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
def test_a_new_process_says_what_a_forked_one_says(served_team: Team, command: tuple[str, ...]) -> None:
    assert served_team.remint(*command, new=True).stdout == served_team.remint(*command).stdout


def test_a_new_process_draws_what_a_forked_one_draws(served_team: Team, tmp_path: Path) -> None:
    for new in (True, False):
        served_team.remint("sample", "digits-vae", "-n", "3", "-o", str(tmp_path / f"{new}.npy"), new=new)
    assert (tmp_path / "True.npy").read_bytes() == (tmp_path / "False.npy").read_bytes()


def test_a_new_process_finds_what_a_forked_one_trained(served_team: Team) -> None:
    """The memory of the steps does not tell them apart: the same settings, code and data."""
    assert "nothing was trained" in served_team.remint("run", "digits-vae", new=True).stdout
    assert served_team.remint("deploy", "--json", new=True).stdout == "[]\n"


def test_new_processes_of_a_person_who_decides(served_team: Team) -> None:
    again = served_team.remint("promote", "digits-vae", "--reason", "again", status=2, new=True).stderr
    assert "is the champion already" in again
    assert "error: " in served_team.remint("reject", "digits-vae/9", "--reason", "no", status=2, new=True).stderr
    assert "error: " in served_team.remint("rollback", "digits-vae", "--reason", "no", status=2, new=True).stderr
    assert "unknown model" in served_team.remint("compare", "digits-vea", status=2, new=True).stderr
    assert "error: " in served_team.remint("rebuild", "digits-vae/9", status=2, new=True).stderr
    assert "unknown pipeline" in served_team.remint("spread", "digits-vea", status=2, new=True).stderr
