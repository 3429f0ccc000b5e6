"""The wall clock jumps by a day during a retraining: its result does not change, nor does that of the next run."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from tests.support import kills, results
from tests.support.clock import DAY, Clock, clock  # noqa: F401 (a fixture)
from tests.support.trials import Trials


@pytest.mark.case(22)
@pytest.mark.soak
def test_a_clock_that_jumps_in_mid_run_changes_nothing(stage: kills.Stage, trials: Trials, clock: Clock) -> None:  # noqa: F811
    """Every second run has a temporary server, whose clock jumps too; the clock of the shared server does not jump."""
    for trial in trials(short=0, full=12):
        scene = replace(
            kills.make_scene(trial.number), kind=trial.random.choice(["first", "next"]), own_server=trial.number % 2 == 1
        )
        undisturbed = stage.undisturbed(scene)
        team = stage.team(scene, f"team-{trial.number}")
        clock.set(0)
        run = kills.Run(team, scene, stage.folder / f"{team.folder.name}.log", **clock.environment)
        jumps = 0
        for shift in trial.random.sample([DAY, -DAY, 0], 2):
            moment = undisturbed.moment(trial.random, again=False)
            if run.wait_for_moment(moment):
                clock.set(shift)
                jumps += 1
        found = results.retraining_results(team, scene.pipeline, run.outcome())
        assert not (run.orphans() or results.differences(found, undisturbed.results) or results.leftovers(team)), scene
        clock.set(0)
        again = kills.Run(team, scene, stage.folder / f"{team.folder.name}-again.log").outcome()
        assert not again["trained"] and again["version"] == found["outcome"]["version"], scene
        shutil.rmtree(team.folder)
        trial.note(runs=1, jumps=jumps, different=0)
