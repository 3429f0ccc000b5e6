"""Models of a table, with samples in the units of the source, and a conditional model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.team import Team


def test_1_models_of_a_table_are_trained_and_promoted(shared_team: Team) -> None:
    outcomes = shared_team.json("run", "cancer-flow", "cancer-vae")
    for outcome in outcomes:
        assert outcome["trained"] and outcome["decision"]["verdict"] == "promoted"
        report = shared_team.folder / ".remint/reports" / outcome["model"] / "1"
        assert {"samples.png", "by_class.png", "curve.png"} <= {path.name for path in report.iterdir()}
        by_class = json.loads((report / "report.json").read_text())["by_class"]
        assert all(set(classes) == {"malignant", "benign"} for classes in by_class.values()) and by_class
    flow, vae = outcomes
    assert flow["metrics"]["nll"]["unit"] == vae["metrics"]["iwae"]["unit"] == "nats"
    assert flow["dataset_version"] == vae["dataset_version"]


def test_2_sampled_rows_have_the_units_of_the_source(shared_team: Team, tmp_path: Path) -> None:
    shared_team.remint("sample", "cancer-vae", "-n", "200", "-o", str(tmp_path / "rows.csv"))
    with (tmp_path / "rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 200 and len(rows[0]) == 30
    area = np.mean([float(row["mean_area"]) for row in rows])
    assert 300 < area < 1200, "the source's mean is 655"
    assert "samples.csv" in shared_team.remint("sample", "cancer-vae").stdout
    with (shared_team.folder / "samples.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == rows[:64], "and its suffix is that of the source"
    assert not shared_team.sh("git status --porcelain"), "which is no uncommitted work"
    refused = shared_team.remint("sample", "cancer-vae", "-o", str(tmp_path / "rows.png"), status=2).stderr
    assert "the result is a table: give a name that ends in .csv or .parquet" in refused


def test_2_a_champion_encodes_decodes_and_morphs_rows(shared_team: Team, tmp_path: Path) -> None:
    rows, latents, again = (str(tmp_path / name) for name in ("rows.csv", "z.npy", "again.csv"))
    shared_team.remint("sample", "cancer-flow", "-n", "20", "-o", rows)
    encoded = shared_team.json("encode", "cancer-flow", rows, "-o", latents)
    assert encoded["count"] == 20 and encoded["model"] == "cancer-flow/1" and not encoded["set_aside"]
    assert np.load(latents).shape == (20, 30)
    shared_team.remint("decode", "cancer-flow", latents, "-o", again)
    here, there = (np.genfromtxt(path, delimiter=",", skip_header=1) for path in (rows, again))
    np.testing.assert_allclose(here, there, rtol=1e-3)
    (tmp_path / "one.csv").write_text("\n".join(Path(rows).read_text().splitlines()[:2]) + "\n")
    one = str(tmp_path / "one.csv")
    said = shared_team.remint("interpolate", "cancer-vae", one, one, "-o", str(tmp_path / "path.csv"), "--steps", "3").stdout
    assert "3 examples from" in said and len((tmp_path / "path.csv").read_text().splitlines()) == 4
    Path(rows).write_text(Path(rows).read_text().replace("mean_area", "area"))
    refused = shared_team.remint("reconstruct", "cancer-vae", rows, "-o", str(tmp_path / "none.csv"), status=2).stderr
    assert "lacks column 'mean_area' of the model: add it" in refused and not (tmp_path / "none.csv").exists()


@pytest.mark.soak
def test_3_a_conditional_model_draws_the_class_asked_for(shared_team: Team, tmp_path: Path) -> None:
    changed = ("--set", "model.conditional=true", "--set", "evaluation.metrics=[elbo, iwae, fd_domain, class_agreement]")
    (outcome,) = shared_team.json("run", "digits-vae", *changed)
    assert outcome["metrics"]["iwae"]["fingerprint"]["given"] == "class"
    assert (
        0 <= outcome["metrics"]["class_agreement"]["value"] <= 1 and outcome["metrics"]["class_agreement"]["better"] == "higher"
    )
    ref = f"digits-vae/{outcome['version']}"
    drawn = {}
    for name in ("3", "8"):
        shared_team.remint("sample", ref, "--class", name, "-n", "20", "-o", str(tmp_path / f"{name}.npy"))
        drawn[name] = np.load(tmp_path / f"{name}.npy", allow_pickle=False)
    assert not np.array_equal(drawn["3"], drawn["8"]), "the same noise, another class"
    assert "expected one of 0, 1, 2" in shared_team.remint("sample", ref, "--class", "three", status=2).stderr
