"""Calibration of a version by its training, its loss, its repair, and a version that cannot have one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from remint.runtime.addresses import local_path
from remint.runtime.home import Home
from remint.settings.params import read_params, write_params
from remint.stores.open import open_tracking
from tests.support.team import Team


@pytest.mark.soak
def test_a_lost_calibration_is_found_and_made_again(team: Team) -> None:
    x_NHW = load_digits().images[:30].astype(np.uint8)
    np.save(team.folder / "x.npy", x_NHW, allow_pickle=False)
    team.sh("echo x.npy >> .git/info/exclude")
    team.remint("run", "digits-vae")
    refused = team.remint("score", "digits-vae", "x.npy", "-o", "a.csv", status=2).stderr
    assert "digits-vae/1 has no calibration, which scores need: run remint calibrate digits-vae/1" in refused
    refused = team.remint("calibrate", "digits-vae", status=2).stderr
    assert "without a calibration split: set datasets.digits.split.calibration in params.yaml" in refused.replace("\n", " ")

    content = read_params(team.folder)
    content["datasets"]["digits"]["split"]["calibration"] = 0.1
    write_params(content, team.folder)
    team.sh("git commit -qam 'a calibration split'")
    (outcome,) = team.json("run", "digits-vae")
    ref = f"digits-vae/{outcome['version']}"
    score = ("score", ref, "x.npy", "-o", "a.csv")
    summary = team.json(*score)
    first = (team.folder / "a.csv").read_bytes()
    assert summary["count"] == 30 and summary["calibrated"] > 100 and len(first.splitlines()) == 31

    home = Home(team.folder, team.folder / ".remint")
    store = open_tracking(home)
    sha256 = store.version(ref).tags.calibration
    kept = (
        Path(local_path(store._client.get_run(store.version(ref).run_id).info.artifact_uri))
        / "calibration/calibration.safetensors"
    )
    content_bytes = bytearray(kept.read_bytes())
    content_bytes[-9] ^= 1
    kept.write_bytes(content_bytes)
    assert f"run remint calibrate {ref}" in team.remint(*score, status=1).stderr.replace("\n", " ")
    audit = team.remint("audit", status=1).stdout
    assert "calibration.safetensors is damaged" in audit.replace("\n", " ")
    assert team.json("calibrate", ref)["calibration"] == sha256
    assert team.json(*score) == summary and (team.folder / "a.csv").read_bytes() == first
    assert "calibration.safetensors" not in team.remint("audit").stdout


@pytest.mark.soak
def test_a_calibrated_version_is_rebuilt_and_survives_gc(team: Team) -> None:
    content = read_params(team.folder)
    content["datasets"]["digits"]["split"]["calibration"] = 0.1
    write_params(content, team.folder)
    team.sh("git commit -qam 'a calibration split'")
    (outcome,) = team.json("run", "digits-vae")
    np.save(team.folder / "x.npy", load_digits().images[:30].astype(np.uint8), allow_pickle=False)
    team.remint("gc", "--apply")
    assert team.json("rebuild", f"digits-vae/{outcome['version']}")["reproduced"]
    assert team.json("score", "digits-vae", "x.npy", "-o", "a.csv")["count"] == 30
