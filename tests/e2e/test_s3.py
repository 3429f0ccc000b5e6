"""Team with its data, DVC remote and MLflow files on one real S3 server. The tests build on each other."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remint.settings.params import write_params
from tests.support.s3 import AWS_VARIABLES, PASSWORD, Server
from tests.support.team import Team

pytestmark = pytest.mark.soak

PIPELINE: dict[str, Any] = {
    "dataset": "pictures",
    "family": "flow",
    "model": {"couplings": 2, "hidden": 16, "bins": 4},
    "training": {"steps": 20, "validate_every": 10},
    "evaluation": {"metrics": ["nll"], "samples": 32, "draws": 4},
    "promotion": {"require": {"nll": {"max": 1.0e6}}},
    "schedule": {},
}


@dataclass(kw_only=True)
class S3Team(Team):
    """Team with its stores on S3. ``printed``: output of its commands."""

    server: Server
    data: str
    store: str
    printed: list[str] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in super().environment().items() if name not in AWS_VARIABLES}
        addresses = {"REMINT_DVC_REMOTE": f"s3://{self.store}/dvc", "REMINT_ARTIFACTS": f"s3://{self.store}/mlflow"}
        return {**own, **self.server.environment(), **addresses}

    def run(self) -> tuple[dict[str, Any], str]:
        """Run the pipeline. Return the outcome and the standard error."""
        done = self.remint("run", "flow", "--json")
        self.printed += [done.stdout, done.stderr]
        (outcome,) = json.loads(done.stdout)
        return outcome, done.stderr

    def stored(self, prefix: str) -> list[str]:
        pages = self.server.client.get_paginator("list_objects_v2").paginate(Bucket=self.store, Prefix=prefix)
        return [each["Key"] for page in pages for each in page.get("Contents", []) if not each["Key"].endswith("/")]


def pictures(first: int, count: int) -> dict[str, bytes]:
    """Return noisy ramps of 8 x 8 pixels, one folder for each class."""
    found = {}
    for i in range(first, first + count):
        x_HW = np.linspace(0, 200, 64).reshape(8, 8) + np.random.default_rng(i).normal(0, 15, (8, 8))
        stream = io.BytesIO()
        Image.fromarray(np.clip(x_HW.T if i % 2 else x_HW, 0, 255).astype(np.uint8)).save(stream, "png")
        found[f"nightly/{('across', 'down')[i % 2]}/{i:04d}.png"] = stream.getvalue()
    return found


@pytest.fixture(scope="module")
def team(template: Path, tmp_path_factory: pytest.TempPathFactory, s3_server: Server) -> S3Team:
    folder = tmp_path_factory.mktemp("s3") / "team"
    shutil.copytree(template, folder, symlinks=True)
    data, store = s3_server.bucket(pictures(0, 150)), s3_server.bucket({})
    source = {"source": f"s3://{data}/nightly", "kind": "image"}
    pipeline = {**PIPELINE, "evaluation": {**PIPELINE["evaluation"], "metrics": ["nll", "fd_domain"]}}  # drift needs features
    write_params({"datasets": {"pictures": source}, "pipelines": {"flow": pipeline}}, folder)
    team = S3Team(folder=folder, server=s3_server, data=data, store=store)
    team.sh("git commit -qam 'Data on S3'")
    return team


def test_1_a_run_on_the_bucket_promotes_a_version(team: S3Team) -> None:
    outcome, log = team.run()
    assert "150 of 150 objects fetched, 0 removed" in log
    assert outcome["trained"] and outcome["version"] == 1 and outcome["decision"]["verdict"] == "promoted"
    assert any("/files/md5/" in key for key in team.stored("dvc/")), "data, weights and report went to the remote"
    assert any(key.endswith("weights.safetensors") for key in team.stored("mlflow/flow/"))
    home = team.folder / ".remint"
    assert not (home / "dvc/remote").exists() and not (home / "mlflow/artifacts").exists(), "and nowhere else"


def test_2_an_unchanged_bucket_fetches_and_trains_nothing(team: S3Team) -> None:
    manifest = team.folder / ".remint/fetched/.pictures.json"
    before = manifest.stat().st_mtime_ns
    outcome, log = team.run()
    assert "0 of 150 objects fetched, 0 removed" in log and manifest.stat().st_mtime_ns == before
    assert outcome["unchanged"] and not outcome["trained"] and outcome["version"] == 1


def test_3_new_data_makes_a_new_dataset_version_and_a_new_model_version(team: S3Team) -> None:
    (previous,) = team.json("models", "flow")
    for key, content in pictures(150, 20).items():
        team.server.put(team.data, key, content)
    team.server.delete(team.data, "nightly/across/0000.png")
    shutil.rmtree(team.folder / ".remint/dvc/cache/files")  # the champion's data come from the remote
    outcome, log = team.run()
    assert "20 of 169 objects fetched, 1 removed" in log
    assert outcome["trained"] and outcome["version"] == 2
    assert outcome["dataset_version"] != previous["dataset_version"]
    assert outcome["weights_sha256"] != previous["weights_sha256"]
    reasons = " ".join(outcome["decision"]["reasons"])
    assert "could not be measured" not in reasons, "the champion came back from S3 and was measured on the new data"
    report = team.folder / ".remint/reports/flow/2"
    drift = json.loads((report / "drift.json").read_text())
    assert drift["comparable"] and (drift["former"], drift["present"]) == (
        previous["dataset_version"],
        outcome["dataset_version"],
    )
    assert drift["kept"] + drift["removed"] == drift["before"]["train"] and drift["removed"] <= 1
    assert drift["kept"] + drift["added"] == drift["after"]["train"] and sum(drift["after"].values()) == 169
    assert drift["distance"]["low"] <= drift["distance"]["value"] <= drift["distance"]["high"] and drift["floor"]
    assert drift["summary"] in " ".join(log.split()) and (report / "drift.png").exists()
    assert json.loads((report / "report.json").read_text())["leakage"]["exact"] == 0
    (again,) = (team.folder / ".remint/evaluations").iterdir()
    leakage = json.loads((again / "report.json").read_text())["leakage"]
    assert leakage["exact"] == leakage["near"] == 0 and leakage["checked"] == drift["after"]["held_out"]


def test_4_the_champion_is_loaded_from_s3(team: S3Team, tmp_path: Path) -> None:
    shutil.rmtree(team.folder / ".remint/models", ignore_errors=True)
    team.remint("sample", "flow@champion", "-n", "4", "-o", str(tmp_path / "x.npy"))
    assert np.load(tmp_path / "x.npy").shape == (4, 1, 8, 8)


def test_5_dvc_repro_restores_the_outputs_of_the_job(team: S3Team) -> None:
    assert "Running stage 'train@flow'" not in team.sh("dvc repro evaluate@flow 2>&1")
    assert (team.folder / "outs/trained/flow/weights.safetensors").exists()


def test_6_a_held_out_source_is_fetched_too_and_judges(team: S3Team) -> None:
    for key, content in pictures(200, 30).items():
        team.server.put(team.data, key.replace("nightly", "judge"), content)
    source = {"source": f"s3://{team.data}/nightly", "kind": "image", "split": {"held_out": f"s3://{team.data}/judge"}}
    write_params({"datasets": {"pictures": source}, "pipelines": {"flow": PIPELINE}}, team.folder)
    team.sh("git commit -qam 'A held-out source on S3'")
    outcome, log = team.run()
    assert "0 of 169 objects fetched" in log and "30 of 30 objects fetched" in log
    assert "the 30 examples of s3://" in log and outcome["version"] == 3
    assert "Running stage 'train@flow'" not in team.sh("dvc repro evaluate@flow 2>&1"), "the job's outputs"
    counts = json.loads((team.folder / "outs/prepared/pictures/dataset.json").read_text())["counts"]
    assert counts["held_out"] == 30 and counts["train"] + counts["validation"] == 169


def test_7_the_secret_is_stored_nowhere(team: S3Team) -> None:
    left = [str(path) for path in team.folder.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert left == [] and not any(PASSWORD in text for text in team.printed)
    kept = [key for prefix in ("dvc/", "mlflow/") for key in team.stored(prefix)]
    assert kept
    for key in kept:
        assert PASSWORD.encode() not in team.server.client.get_object(Bucket=team.store, Key=key)["Body"].read(), key
