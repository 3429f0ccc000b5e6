"""Refusals: a model whose champion cannot be measured again, and uncommitted work."""

from __future__ import annotations

import pytest

from remint.settings.params import read_params, write_params
from tests.support.leaks import Search
from tests.support.team import Team

PERSON = "Ada Lovelace of Marylebone, 1815-12-10"


@pytest.mark.soak
def test_nothing_is_promoted_when_the_weights_of_the_champion_are_lost(served_team: Team) -> None:
    weights = list((served_team.folder / ".remint/mlflow/artifacts/digits-gan").rglob("*.safetensors"))
    assert weights
    for path in weights:
        path.unlink()
    (outcome,) = served_team.json("run", "digits-gan", "--set", "training.steps=61")
    assert outcome["trained"] and outcome["champion"] == 1 and outcome["decision"]["verdict"] == "refused"
    (reason,) = outcome["decision"]["reasons"]
    assert reason.startswith("not comparable: champion digits-gan/1 could not be measured again: ")


@pytest.mark.soak
def test_uncommitted_work_is_marked_and_not_promoted(served_team: Team) -> None:
    source = served_team.folder / "src/remint/models/vae.py"
    source.write_text(source.read_text() + "\n# an experiment\n")
    content = read_params(served_team.folder)
    content["datasets"]["people"] = {"source": "customers/people.csv", "kind": "table"}
    write_params(content, served_team.folder)
    (served_team.folder / "customers").mkdir()
    (served_team.folder / "customers/people.csv").write_text(f"name,born\n{PERSON}\n")  # git does not ignore it
    (outcome,) = served_team.json("run", "digits-vae", "--set", "training.steps=80")
    assert outcome["decision"]["verdict"] == "refused"
    changed = "uncommitted changes in params.yaml, src/remint/models/vae.py;"
    assert any(changed in reason for reason in outcome["decision"]["reasons"]), outcome["decision"]["reasons"]
    marked = served_team.json("models", "digits-vae")[0]
    assert marked["version"] == outcome["version"] and marked["dirty"]
    search = Search([PERSON])
    search.git(served_team.folder)
    (served_team.folder / "customers/people.csv").rename(served_team.folder.parent / "people.csv")
    search.tree(served_team.folder)
    assert not any(search.found.values()), search.found
    served_team.sh("git commit -qam 'the experiment, kept'")
    (again,) = served_team.json("run", "digits-vae", "--set", "training.steps=80")
    assert again["version"] == outcome["version"] and not again["trained"]
    assert not served_team.json("models", "digits-vae")[0]["dirty"], "a clean commit that gives the same key clears the mark"
