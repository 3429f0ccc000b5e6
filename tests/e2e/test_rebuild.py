"""Rebuild of a version of uncommitted work in a new clone, from its own records only. The tests build on each other."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remint.settings.params import write_params
from tests.support.team import Team

PIPELINE = {
    "dataset": "ramps",
    "family": "flow",
    "model": {"couplings": 2, "hidden": 16, "bins": 4, "dropout": 0.1},
    "training": {"steps": 30, "validate_every": 10},
    "evaluation": {"metrics": ["nll", "fd_domain"], "samples": 32, "draws": 4},
    "promotion": {"require": {"nll": {"max": 1.0e6}}},
    "schedule": {},
}


@dataclass(kw_only=True)
class OtherMachine(Team):
    """Clone with a separate home and with the stores of the original team."""

    stores: Path
    home: Path

    def environment(self) -> dict[str, str]:
        addresses = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.stores}/mlflow/mlflow.db",
            "REMINT_ARTIFACTS": f"{self.stores}/mlflow/artifacts",
            "REMINT_LEDGER": f"sqlite:///{self.stores}/ledger.db",
            "REMINT_DVC_REMOTE": f"{self.stores}/dvc/remote",
            "REMINT_HOME": str(self.home),
        }
        return {**super().environment(), **addresses}


@dataclass
class Story:
    team: Team
    elsewhere: OtherMachine
    outcome: dict[str, Any]


@pytest.fixture(scope="module")
def story(shared_team: Team, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Train uncommitted work; then remove its source, cache and checkpoints, and the uncommitted changes."""
    folder = tmp_path_factory.mktemp("elsewhere")
    generator = np.random.default_rng(0)
    x_NHW = np.linspace(0, 200, 64).reshape(8, 8) + generator.normal(0, 15, (300, 8, 8))
    source = folder / "ramps.npz"
    np.savez(source, x=np.clip(x_NHW, 0, 255).astype(np.uint8))
    write_params(
        {"datasets": {"ramps": {"source": str(source), "kind": "image"}}, "pipelines": {"flow": PIPELINE}}, shared_team.folder
    )
    (outcome,) = shared_team.json("run", "flow")
    source.unlink()
    shared_team.sh("git checkout -q params.yaml")
    stores = shared_team.folder / ".remint"
    shutil.rmtree(stores / "dvc/cache")
    for name in ("checkpoints", "schemas", "features"):
        shutil.rmtree(stores / name, ignore_errors=True)
    shared_team.sh(f"git clone -q . {folder}/clone")
    return Story(shared_team, OtherMachine(folder=folder / "clone", stores=stores, home=folder / "home"), outcome)


def test_1_the_rebuild_is_identical_and_changes_no_store(story: Story) -> None:
    stores, home = story.elsewhere.stores, story.elsewhere.home
    remote = {path: path.stat().st_mtime_ns for path in (stores / "dvc/remote").rglob("*")}
    before = story.team.state(), story.elsewhere.state(), (stores / "ledger.db").read_bytes()
    done = story.elsewhere.remint("rebuild", "flow/1", "--json")
    answer = json.loads(done.stdout)
    assert answer["dirty"], "the commit came from the bundle that the version carries"
    assert answer["identical"] and answer["reproduced"] and answer["rule"] == "identity" and answer["differences"] == []
    assert answer["recorded"] == answer["rebuilt"] and answer["notes"] == []
    assert not [each for each in answer["environment"] if each["here"] == "not installed"]
    assert answer["rebuilt"]["weights_sha256"] == story.outcome["weights_sha256"]
    assert answer["rebuilt"]["metrics"] == story.outcome["metrics"]
    assert answer["tolerance"]["nll"]["from"] == "95% interval" and answer["tolerance"]["nll"]["within"] > 0
    assert set(answer["seconds"]) == {"commit", "pull", "prepare", "features", "train", "evaluate"}
    assert "trains" in done.stderr
    after = story.team.state(), story.elsewhere.state(), (stores / "ledger.db").read_bytes()
    assert before == after, "nothing of the person's, and no decision"
    assert {path: path.stat().st_mtime_ns for path in (stores / "dvc/remote").rglob("*")} == remote
    assert not (stores / "dvc/cache").exists() and not (stores / "checkpoints").exists()
    assert sorted(path.name for path in home.iterdir()) == ["jobs", "locks", "workspaces"]
    assert list((home / "workspaces").iterdir()) == []
    assert re.search(r"rebuilt 20\S+ identical\n", story.elsewhere.remint("why", "flow/1").stdout)
    (kept,) = (stores / "mlflow/artifacts").rglob("rebuild.json")
    assert json.loads(kept.read_text())["rebuilt"] == answer["rebuilt"]


@pytest.mark.soak
def test_2_another_machine_is_held_to_the_tolerances_and_an_edited_setting_is_found(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(story.elsewhere.stores / "mlflow/mlflow.db") as database:
        edited = (
            "update model_version_tags set value = replace(value, '\"steps\":30', '\"steps\":31') where key = 'remint.recipe'"
        )
        assert database.execute(edited).rowcount == 1
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # selects other kernels, like an older processor
    answer = json.loads(story.elsewhere.remint("rebuild", "flow/1", "--json", status=1).stdout)
    assert answer["rule"] == "tolerance" and not answer["identical"] and not answer["reproduced"]
    assert {"environment": {"ATEN_CPU_CAPABILITY": "default"}}.items() <= {
        each["name"]: each["here"] for each in answer["environment"]
    }.items()
    refused = [(each["thing"], each["recorded"], each["rebuilt"]) for each in answer["differences"] if not each["allowed"]]
    assert refused == [("settings training.steps", 31, 30)], "what the other kernels change is allowed"
    metrics = [each for each in answer["differences"] if each["thing"].startswith("metric")]
    assert metrics and all("within" in each["why"] for each in metrics)


def test_3_lost_data_are_one_clear_error(story: Story) -> None:
    stores = story.elsewhere.stores
    (stores / "dvc/remote").rename(stores / "dvc/away")
    message = story.elsewhere.remint("rebuild", "flow/1", status=1).stderr
    assert "error: flow/1: its data cannot be fetched: dvc pull" in message
    assert list((story.elsewhere.home / "workspaces").iterdir()) == []
