"""Decisions of a person: approve, reject, overrule, roll back."""

from __future__ import annotations

import pytest

from tests.support.team import Team


@pytest.mark.soak
def test_a_person_approves_rejects_and_overrules(served_team: Team) -> None:
    (outcome,) = served_team.json("run", "digits-flow", "--set", "promotion.approval=manual", "--set", "training.steps=120")
    champion = outcome["champion"]
    assert outcome["decision"]["verdict"] == "awaiting_approval" and outcome["version"] != champion
    ref = f"digits-flow/{outcome['version']}"
    assert served_team.json("reject", ref, "--reason", "not convinced")["champion_after"] == champion
    (again,) = served_team.json("run", "digits-flow", "--set", "promotion.approval=manual", "--set", "training.steps=120")
    assert again["unchanged"] and again["decision"]["verdict"] == "rejected", "what a person rejected is not brought up again"
    row = served_team.json("promote", ref, "--reason", "looked again")
    assert row["champion_after"] == outcome["version"] and row["why"] == "looked again"
    (now,) = [m for m in served_team.json("models", "digits-flow") if "champion" in m["aliases"]]
    assert now["version"] == outcome["version"]
    assert [r["action"] for r in served_team.json("history", "digits-flow")["rows"]][-3:] == [
        "awaiting_approval",
        "rejected",
        "promoted",
    ]
    assert "is the champion already" in served_team.remint("promote", ref, "--reason", "again", status=2).stderr
    back = served_team.json("rollback", "digits-flow", "--reason", "the sevens blur")
    assert (back["action"], back["version"], back["champion_after"]) == ("rolled_back", outcome["version"], champion)
    (same,) = served_team.json(
        "run", "digits-flow", "--set", "training.steps=120"
    )  # other rules: the gate may promote without approval
    assert same["champion"] == champion and same["decision"]["verdict"] == "refused" and not same["trained"]
    assert f"{ref} was rolled back on" in same["decision"]["reasons"][0] and "the sevens blur" in same["decision"]["reasons"][0]
    assert served_team.json("history", "digits-flow", "--verify")["findings"] == []
