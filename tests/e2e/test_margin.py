"""Automatic margin: the measured variation between seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
    assert f"by more than {spread['margins']['nll']:.4f}, the seed-to-seed variation (3 seeds)" in json.dumps(outcome["decision"])
