"""Automatic margin: the measured variation between seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remint.settings.params import read_params, write_params
from tests.support.stack import Stack
from tests.support.team import Team


@pytest.mark.soak
def test_an_automatic_margin_is_the_seed_to_seed_variation(served_team: Team) -> None:
    before = served_team.json("models", "digits-flow")
    spread = served_team.json("spread", "digits-flow", "--seeds", "3", "--set", "training.steps=121")
    assert spread["seeds"] == [0, 1, 2] and len(set(spread["values"]["nll"])) == 3
    assert Path(spread["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert served_team.json("models", "digits-flow") == before, "nothing is registered"
    (outcome,) = served_team.json(
        "run", "digits-flow", *("--set", "promotion.improve.margin=auto"), *("--set", "training.steps=121")
    )
    assert not outcome["trained"] and not outcome["unchanged"], "the gate has something new to go by"
    assert spread["values"]["nll"][0] == outcome["metrics"]["nll"]["value"], "the first seed is the pipeline's own"
    said = json.dumps(outcome["decision"])
    assert "better than seed-to-seed variation explains (evidence " in said and "try 1 of digits-flow: cost 61.44%" in said


@pytest.mark.soak
def test_the_first_scheduled_run_measures_the_variation_by_itself(lone_team: Team, tmp_path: Path) -> None:
    content = read_params(lone_team.folder)
    content["pipelines"]["digits-flow"]["promotion"]["improve"] = {"metric": "nll", "margin": "auto"}
    content["pipelines"]["digits-flow"]["schedule"] = {"cron": "0 0 29 2 *"}
    write_params(content, lone_team.folder)
    lone_team.sh("git commit -qam 'margin: auto'")
    stack = Stack(lone_team, tmp_path / "log")
    try:
        typed = lone_team.remint("run", "digits-flow")
        assert "the next scheduled run measures it by 5 trainings" in " ".join((typed.stdout + typed.stderr).split())
        deployment = stack.deployment("digits-flow")
        body = {"parameters": deployment["parameters"]}
        run = str(stack.request(f"/deployments/{deployment['id']}/create_flow_run", body)["id"])
        stack.wait_for(lambda: stack.states(run)[-1]["type"] == "COMPLETED", 240.0)
        assert stack.states(run)[-1]["name"] == "Unchanged"
    finally:
        stack.stop()
    (outcome,) = lone_team.json("run", "digits-flow", "--set", "training.steps=121")
    assert "better than seed-to-seed variation explains (evidence " in json.dumps(outcome["decision"])
    assert len(lone_team.json("models", "digits-flow")) == 2, "the seeds registered nothing"
