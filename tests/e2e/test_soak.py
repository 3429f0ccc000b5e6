"""Killed again and again at seeded moments of the whole path: nothing committed is lost, nothing is doubled. Run by make soak."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.e2e.team import Team

KILLS, SEED = 12, 20261121


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_at_seeded_moments(team: Team, template: Path, tmp_path: Path) -> None:
    command = ["run", "digits-vae", "--set", "training.steps=400"]
    moments = random.Random(SEED)
    survived = 0
    for turn in range(KILLS):
        run = team.start(*command, log=tmp_path / f"log{turn}")
        try:
            run.wait(timeout=moments.uniform(3.0, 22.0))
            survived += 1
        except subprocess.TimeoutExpired:
            children = psutil.Process(run.pid).children(recursive=True)
            run.kill()
            run.wait()
            _, alive = psutil.wait_procs(children, timeout=30)
            assert not alive, f"seed {SEED}, turn {turn}"
    assert survived < KILLS, "no moment fell into the run: choose others"
    (outcome,) = team.json(*command)
    versions = team.json("models", "digits-vae")
    assert [v["version"] for v in versions] == [1] and versions[0]["aliases"] == ["champion"], f"seed {SEED}"
    history = team.json("history", "digits-vae")
    assert [row["action"] for row in history["rows"]] == ["promoted"] and history["findings"] == []
    undisturbed = Team(tmp_path / "undisturbed")
    subprocess.run(["cp", "-r", str(template), str(undisturbed.folder)], check=True)
    (reference,) = undisturbed.json(*command)
    assert reference["weights_sha256"] == outcome["weights_sha256"]
