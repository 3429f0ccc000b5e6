"""dvc commands of a person after a run, and the settings that cause a new training."""

from __future__ import annotations

import json

import pytest

from tests.support.team import Team


@pytest.mark.soak
def test_dvc_repro_restores_the_trained_model(served_team: Team) -> None:
    output = served_team.sh("dvc repro evaluate@digits-flow 2>&1")
    assert "Running stage 'train@digits-flow'" not in output
    bundle = served_team.folder / "outs/trained/digits-flow"
    registered = served_team.json("models", "digits-flow")[0]["weights_sha256"]
    assert json.loads((bundle / "training.json").read_text())["weights_sha256"] == registered
    assert "digits-flow" in served_team.sh("dvc metrics show 2>/dev/null")
    assert "train@digits-flow" in served_team.sh("dvc dag")
    served_team.sh("dvc plots show 2>/dev/null")
    assert (served_team.folder / "dvc_plots/index.html").exists()
    assert not served_team.json("run", "digits-flow")[0]["trained"], "and what dvc left behind is no dirt"


@pytest.mark.soak
def test_a_new_gate_setting_trains_nothing_and_a_new_learning_rate_trains(served_team: Team) -> None:
    (outcome,) = served_team.json("run", "digits-vae", "--set", "promotion.improve.confidence=0.9")
    assert not outcome["trained"] and outcome["version"] == 1
    (outcome,) = served_team.json("run", "digits-vae", "--set", "training.learning_rate=1.0e-3")
    assert outcome["trained"]
