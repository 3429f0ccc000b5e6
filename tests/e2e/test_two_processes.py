"""Two processes train one model."""

from __future__ import annotations

import pytest

from tests.support.team import Team


@pytest.mark.soak
def test_two_processes_train_through_the_same_path(served_team: Team) -> None:
    (outcome,) = served_team.json("run", "digits-vae", "--set", "training.devices=2", "--set", "training.steps=10")
    assert outcome["trained"]
    why = served_team.json("why", f"digits-vae/{outcome['version']}")
    assert why["lineage"]["world_size"] == "2"
