"""Home of the old module layout: its versions load, verify, rebuild, and are trained again with the same weights."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from remint.settings.params import read_params, write_params
from tests.support.team import SOURCE, Team, copy_sources, shorten_trainings

LAST_OLD_COMMIT = "1b187ecee1c0e1c604ddd2d464174d4450d8d0e2"  # the last commit with the old layout
PIPELINE = "digits-vae"
SAMPLE = ("sample", PIPELINE, "-n", "16", "--seed", "3")


@dataclass
class OldTeam(Team):
    """Team whose commands run the code of its own commit."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": os.pathsep.join(map(str, (self.folder / "src", self.folder)))}


@pytest.fixture
def old_team(tmp_path: Path, prefect_server: str) -> OldTeam:
    return team_at(LAST_OLD_COMMIT, tmp_path / "team", prefect_server)


def team_at(commit: str, folder: Path, api: str) -> OldTeam:
    """Make a repository of an earlier commit, with quick trainings."""
    if subprocess.run(["git", "cat-file", "-e", commit], cwd=SOURCE, check=False, capture_output=True).returncode:
        pytest.skip(f"this clone is shallow: it lacks commit {commit[:10]}")
    subprocess.run(["git", "clone", "-q", "--no-checkout", SOURCE, folder], check=True)
    team = OldTeam(folder, api=api)
    team.sh(f"git checkout -q -B main {commit} && git config user.email a@example.org && git config user.name A")
    write_params(shorten_trainings(read_params(folder)), folder)
    team.sh("git commit -qam quick")
    return team


def upgraded(old: OldTeam) -> Team:
    """Bring the repository to this working tree in place, as a pull does, in one commit."""
    old.sh("git rm -rq .")
    copy_sources(old.folder)
    write_params(shorten_trainings(read_params(old.folder)), old.folder)
    old.sh("git add -A && git commit -qm 'the new remint'")
    return Team(old.folder, api=old.api)


@pytest.mark.soak  # two minutes of processor time
def test_a_home_of_the_old_layout_loads_verifies_and_rebuilds_identically(old_team: OldTeam, tmp_path: Path) -> None:
    (before,) = old_team.json("run", PIPELINE)
    assert (before["decision"]["verdict"], before["version"]) == ("promoted", 1)
    old_team.remint(*SAMPLE, "-o", str(tmp_path / "before.npy"))
    rows = old_team.json("why", PIPELINE)["decisions"]

    new = upgraded(old_team)

    new.remint(*SAMPLE, "-o", str(tmp_path / "after.npy"))
    assert (tmp_path / "after.npy").read_bytes() == (tmp_path / "before.npy").read_bytes()
    assert "verifies" in new.remint("history", PIPELINE, "--verify").stdout
    assert new.json("why", PIPELINE)["decisions"] == [{**row, "decision": ""} for row in rows], "digests begin with the move"
    answer = new.json("rebuild", f"{PIPELINE}/1")
    assert answer["identical"], json.dumps(answer["differences"])

    (after,) = new.json("run", PIPELINE)
    assert after["trained"], "the code is another, so it trains again"
    assert after["weights_sha256"] == before["weights_sha256"] and after["version"] == 1, "and makes the same version"
    # Its report says more than the old one, so there is a new decision; its commit was kept before the version was known.
    assert [each["kind"] for each in new.json("audit")] == ["orphan"]
