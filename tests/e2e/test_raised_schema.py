"""A schema that is raised, for a new category and for a new column: nightly promotion goes on, or asks a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remint.settings.params import read_params, write_params
from tests.support.team import Team


def write_rows(path: Path, categories: str, *, column: bool = False) -> None:
    """Write rows of a number that depends on a category."""
    generator = np.random.default_rng(0)
    place_N = generator.integers(len(categories), size=600)
    number_N = 0.3 * generator.normal(size=600) + 3 * place_N
    header = ["plan", "spent", *(["visits"] if column else [])]
    extra_N = generator.poisson(3, size=600)
    path.parent.mkdir(exist_ok=True)
    rows = [
        ",".join([categories[place], f"{number:.4f}", *([str(extra)] if column else [])])
        for place, number, extra in zip(place_N, number_N, extra_N, strict=True)
    ]
    path.write_text("\n".join([",".join(header), *rows]) + "\n")


@pytest.mark.soak
def test_a_champion_of_a_former_schema_is_compared_where_it_can_be(served_team: Team) -> None:
    content = read_params(served_team.folder)
    source = served_team.folder / "data/customers.csv"

    def run(version: int, steps: int) -> dict[str, Any]:
        content["datasets"]["customers"] = {"source": "data/customers.csv", "kind": "table", "schema_version": version}
        content["pipelines"]["customers-flow"] = {
            "dataset": "customers",
            "family": "flow",
            "model": {"couplings": 2, "hidden": 16, "bins": 8},
            "training": {"steps": steps, "validate_every": 20, "batch_size": 64, "learning_rate": 5e-3},
            "evaluation": {"metrics": ["nll", "fd_domain"], "samples": 64, "draws": 8},
            "promotion": {"require": {"nll": {"max": 20.0}}, "improve": {"metric": "nll"}},
        }
        write_params(content, served_team.folder)
        served_team.sh(f"git commit -qam 'schema {version}'")
        (outcome,) = served_team.json("run", "customers-flow")
        return dict(outcome)

    write_rows(source, "ab")
    assert run(1, 20)["decision"]["verdict"] == "promoted"
    write_rows(source, "abc")
    refused = served_team.remint("run", "customers-flow", status=2).stderr
    assert "column 'plan' has 1 new value: 'c'" in refused and "schema_version: 2" in refused
    outcome = run(2, 300)
    rules = {rule["rule"]: rule for rule in outcome["decision"]["rules"]}
    assert "that the champion's schema can describe" in rules["schema"]["reason"] and rules["schema"]["passed"]
    assert outcome["decision"]["verdict"] == "promoted", outcome["decision"]["reasons"]
    write_rows(source, "abc", column=True)
    outcome = run(3, 60)
    assert outcome["decision"]["verdict"] == "awaiting_approval" and outcome["champion"] == 2
    (reason,) = outcome["decision"]["reasons"]
    assert "column 'visits' is new. A person decides: remint promote customers-flow/3" in reason
    served_team.remint("promote", "customers-flow/3", "--reason", "the new column is wanted")
    assert served_team.json("models", "customers-flow")[0]["aliases"] == ["champion"]
