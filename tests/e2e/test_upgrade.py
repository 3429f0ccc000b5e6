"""Installation of the commit before publishing, moving and pools: it is upgraded in place, and goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from remint.settings.params import read_params, write_params
from tests.e2e.test_before_the_move import PIPELINE, SAMPLE, team_at, upgraded
from tests.support.team import Team

BEFORE = "c069824416ee8ac38934f804611cda5b13bea353"


@dataclass(kw_only=True)
class Moved(Team):
    """The same clone with another home."""

    home: Path

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "REMINT_HOME": str(self.home)}


@pytest.mark.soak  # three minutes of processor time
def test_an_installation_is_upgraded_in_place_and_goes_on(
    tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    old = team_at(BEFORE, tmp_path / "team", prefect_server)
    (before,) = old.json("run", PIPELINE)
    assert (before["decision"]["verdict"], before["version"]) == ("promoted", 1)
    old.remint(*SAMPLE, "-o", str(tmp_path / "before.npy"))
    rows, listed = old.json("why", PIPELINE)["decisions"], old.json("models", PIPELINE)

    new = upgraded(old)
    new.remint(*SAMPLE, "-o", str(tmp_path / "after.npy"))
    assert (tmp_path / "after.npy").read_bytes() == (tmp_path / "before.npy").read_bytes()
    assert new.json("models", PIPELINE) == listed and new.json("why", PIPELINE)["decisions"] == rows
    assert "verifies" in new.remint("history", PIPELINE, "--verify").stdout
    assert not [each for each in new.json("audit") if each["kind"] != "orphan"]

    (again,) = new.json("run", PIPELINE)
    assert again["version"] == 1 and again["weights_sha256"] == before["weights_sha256"]
    (other,) = new.json("run", PIPELINE, "--set", "training.seed=5")
    assert other["version"] == 2
    if other["champion"] == 1:
        new.remint("promote", f"{PIPELINE}/2", "--reason", "a test", "--against", "1")
    assert "verifies" in new.remint("history", PIPELINE, "--verify").stdout
    _publish_and_move(new, tmp_path)


def _publish_and_move(team: Team, folder: Path) -> None:
    """Use what is new: publish the champion, and move the installation to another home."""
    content = read_params(team.folder)
    content["pipelines"][PIPELINE]["publish"] = str(folder / "shelf")
    write_params(content, team.folder)
    assert team.json("publish")[0]["model"] == f"{PIPELINE}/2"
    team.remint("sample", f"{folder}/shelf/{PIPELINE}", "-n", "16", "--seed", "3", "-o", str(folder / "published.npy"))
    team.remint(*SAMPLE, "-o", str(folder / "registered.npy"))
    assert (folder / "published.npy").read_bytes() == (folder / "registered.npy").read_bytes()

    state = team.json("export-state", str(folder / "state"))
    assert state["models"] == {PIPELINE: 2}
    shutil.copytree(team.folder / ".remint/dvc/remote", folder / "elsewhere/dvc/remote")  # the data, as the page says
    moved = Moved(team.folder, api=team.api, home=folder / "elsewhere")
    done = moved.json("import-state", str(folder / "state"))
    assert not [each for each in done["findings"] if each["kind"] != "orphan"], json.dumps(done["findings"])
    assert moved.json("models", PIPELINE) == team.json("models", PIPELINE)
    moved.remint(*SAMPLE, "-o", str(folder / "moved.npy"))
    assert (folder / "moved.npy").read_bytes() == (folder / "registered.npy").read_bytes()
