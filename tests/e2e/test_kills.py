"""A run killed at any moment: the next run has the same weights, metrics and registry as an undisturbed run."""

from __future__ import annotations

import json
import shutil
from itertools import count
from pathlib import Path

import pytest

from tests.support import kills, results
from tests.support.trials import Trial, Trials


@pytest.mark.soak
@pytest.mark.case(1)
def test_killed_anywhere_it_ends_as_if_it_never_was(stage: kills.Stage, trials: Trials) -> None:
    for trial in trials(short=1, full=200):
        scene = kills.make_scene(trial.number)
        for attempt in count():
            if _kill_and_resume(stage, scene, trial, f"team-{trial.number}-{attempt}"):
                break


def _kill_and_resume(stage: kills.Stage, scene: kills.Scene, trial: Trial, name: str) -> bool:
    """Kill a run, in every fourth trial also the run that resumes it, and let the next one finish.

    Return False if each run ended before its moment. ``name``: of an unused folder, since MLflow keeps databases open.
    """
    undisturbed = stage.undisturbed(scene)
    team = stage.team(scene, name)
    killed, orphans = [], []
    for turn in range(2 if trial.number % 4 == 0 else 1):
        moment = undisturbed.moment(trial.random, again=turn > 0)
        run = kills.Run(team, scene, stage.folder / f"{team.folder.name}-{turn}.log")
        if run.wait_for_moment(moment):
            killed.append(f"{stage.kill(run, trial.random)} {moment}")
        orphans += run.orphans()
    description = f"{scene}, killed: {killed}"
    print(description)
    checkpoints = team.folder.glob(".remint/checkpoints/*/step-*")
    newest = max((int(path.name.removeprefix("step-")) for path in checkpoints), default=0)
    last = kills.Run(team, scene, stage.folder / f"{team.folder.name}.log")
    outcome = last.outcome()
    orphans += last.orphans()
    found = results.retraining_results(team, scene.pipeline, outcome)
    wanted = undisturbed.results
    assert found["outcome"]["weights_sha256"] == wanted["outcome"]["weights_sha256"], description
    lost, doubled = set(wanted["versions"]) - set(found["versions"]), set(found["versions"]) - set(wanted["versions"])
    wrong = results.differences(found, wanted) + results.leftovers(team)
    if trial.number % 10 == 5:
        wrong += results.leftovers_after_gc(team)
    assert not (orphans or wrong), f"{description}: {orphans} {wrong}"
    if outcome["trained"] and newest:
        assert resume_step(team.folder / ".remint") == newest, description
    shutil.rmtree(team.folder)
    if killed:
        trial.note(kills=len(killed), lost=len(lost), doubled=len(doubled), orphans=len(orphans), other_weights=0)
    return bool(killed)


def resume_step(home: Path) -> int:
    """Return the step at which the newest training resumed; 0 if it started anew."""
    lines = sorted(home.glob("jobs/*/train.jsonl"))[-1].read_text().splitlines()
    return next((event["step"] for event in map(json.loads, lines) if event["event"] == "resumed"), 0)
