"""One training from settings and data to a folder: its content, the same each time."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from remint.data.arrays import Dataset
from remint.errors import StepError
from remint.models.bundle import load_model
from remint.models.contract import CanSample
from remint.records import TrainedModel, digest
from remint.runtime.manifest import verify
from remint.settings.recipe import TrainingSettings
from remint.training import step as training_step
from tests.support import training_cases as cases


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return cases.prepare(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_the_same_training_gives_the_same_bytes(family: str, dataset: Dataset, tmp_path: Path) -> None:
    recipe = cases.recipe(family)
    trained = cases.train_into(recipe, dataset, tmp_path / "first")
    assert cases.train_into(recipe, dataset, tmp_path / "second") == trained
    assert cases.file_contents(tmp_path / "first") == cases.file_contents(tmp_path / "second")
    other = cases.train_into(cases.recipe(family, seed=4), dataset, tmp_path / "third")
    assert other.weights_sha256 != trained.weights_sha256
    assert other.key != trained.key


def test_the_folder_is_a_bundle_that_describes_itself(dataset: Dataset, tmp_path: Path) -> None:
    recipe = cases.recipe("vae")
    trained = cases.train_into(recipe, dataset, tmp_path)
    out = tmp_path / "out"
    assert set(verify(out)["files"]) == {
        "weights.safetensors",
        "model.json",
        "training.json",
        "curve.csv",
        "samples.safetensors",
    }
    assert TrainedModel.read(out / "training.json") == trained
    assert trained.recipe == recipe.resolved()
    assert trained.dataset == dataset.version.digest
    assert (trained.steps, trained.world_size, trained.fingerprint["threads"]) == (12, 1, 1)
    rows = list(csv.DictReader((out / "curve.csv").open()))
    assert (list(rows[0])[:3], list(rows[0])[-1]) == (["step", "elbo_loss", "kl"], "validation")
    assert [row["step"] for row in rows] == ["5", "10", "12"]
    best = min(rows, key=lambda row: float(row["validation"]))
    assert (trained.best_step, trained.validation) == (int(best["step"]), float(best["validation"]))
    model = load_model(out)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert list((tmp_path / "checkpoints").iterdir()) == [], "what led to a model that is written is deleted"


def test_the_served_weights_have_the_best_score(dataset: Dataset, tmp_path: Path) -> None:
    """A training that continues after its best score serves the same weights as one that ended there."""
    from remint.distributed.world import World
    from remint.training.validation import scorer

    trained = cases.train_into(
        cases.recipe("flow", learning_rate=0.2, final_learning_rate=1.0, validate_every=1, steps=12), dataset, tmp_path
    )
    assert trained.best_step < 12, "the case must be one that gets worse"
    model = load_model(tmp_path / "out")
    score = scorer(model, dataset.validation.x_NX, None, dataset.spec, TrainingSettings(seed=3), World(0, 1, torch.device("cpu")))
    assert score is not None
    assert score(model) == pytest.approx(trained.validation, rel=1e-6)


def test_a_family_without_a_likelihood_serves_its_last_step(dataset: Dataset, tmp_path: Path) -> None:
    trained = cases.train_into(cases.recipe("gan"), dataset, tmp_path)
    assert (trained.best_step, trained.validation) == (12, None)
    header = (tmp_path / "out/curve.csv").read_text().splitlines()[0].split(",")
    assert header[:3] == ["step", "critic_loss", "generator_loss"]
    assert header[-2:] == ["coverage", "reached"]


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_bf16_training_keeps_weights_in_fp32(family: str, dataset: Dataset, tmp_path: Path) -> None:
    bf16 = cases.train_into(cases.recipe(family, precision="bf16"), dataset, tmp_path / "bf16")
    fp32 = cases.train_into(cases.recipe(family), dataset, tmp_path / "fp32")
    assert bf16.weights_sha256 != fp32.weights_sha256
    assert {p.dtype for p in load_model(tmp_path / "bf16/out").parameters()} == {torch.float32}
    first = [np.genfromtxt(tmp_path / name / "out/curve.csv", delimiter=",", skip_header=1)[:, 1] for name in ("bf16", "fp32")]
    np.testing.assert_allclose(*first, rtol=0.05)


@pytest.mark.parametrize("case", cases.MODELS)
def test_fp64_training_uses_double_precision_and_serves_single_precision(case: str, dataset: Dataset, tmp_path: Path) -> None:
    double = cases.train_into(cases.recipe(case, precision="fp64"), dataset, tmp_path / "fp64")
    single = cases.train_into(cases.recipe(case), dataset, tmp_path / "fp32")
    saved = load_file(tmp_path / "fp64/out/weights.safetensors")
    served = load_model(tmp_path / "fp64/out")
    assert {p.dtype for p in served.parameters()} == {torch.float32}
    for name, parameter in served.named_parameters():
        assert saved[name].dtype == torch.float64
        assert torch.equal(parameter, saved[name].float())
    assert any(not torch.equal(saved[name], saved[name].float().double()) for name in saved), "it was not rounded on the way"
    assert isinstance(served, CanSample)
    assert served.sample(torch.zeros(3, served.sample_noise)).dtype == torch.uint8
    curves = [np.genfromtxt(tmp_path / name / "out/curve.csv", delimiter=",", skip_header=1)[:, 1] for name in ("fp64", "fp32")]
    np.testing.assert_allclose(*curves, rtol=0.01)
    assert (double.ended, single.ended) == ("finished", "finished")


@pytest.mark.parametrize("case", cases.MODELS)
def test_every_family_recovers_from_nonfinite_weights(
    case: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate is infinite first in the eighth step only, then in all steps from the eighth on, after rollbacks too."""
    several = case.startswith(("gan", "vaegan"))  # two phases; the weights of the first make the second nonfinite
    with monkeypatch.context() as patch:
        patch.setattr(training_step, "rollback_factor", training_step.rollback_factor)
        cases.set_infinite_learning_rate(7)
        mended = cases.train_into(cases.recipe(case, steps=20, validate_every=20), dataset, tmp_path / "mended")
    assert (mended.ended, mended.steps) == ("finished", 20)
    said = capsys.readouterr().err
    assert "skipped step=8 skipped=1 " in said if several else "rolled_back step=14 to=6 message=6 steps in a row" in said
    assert all(torch.isfinite(p).all() for p in load_model(tmp_path / "mended/out").parameters())

    real = training_step.learning_rate_factor
    monkeypatch.setattr(training_step, "learning_rate_factor", lambda step, *rest: math.inf if step >= 7 else real(step, *rest))
    with pytest.raises(StepError, match=f"training diverged at step {14 - several}, after 2 rollbacks: 6 steps in a row"):
        cases.train_into(cases.recipe(case, steps=20, validate_every=20), dataset, tmp_path / "ruined")
    (folder,) = (tmp_path / "ruined/checkpoints").glob("*/diverged")
    record = json.loads((folder / "diverged.json").read_text())
    assert [found["step"] for found in record["breaks"][-6:]] == list(range(8 - several, 14 - several))
    assert all(len(found["examples"]) == 12 and (several or found["parameters"]) for found in record["breaks"])
    assert not (tmp_path / "ruined/out").exists()


def test_the_guard_does_not_change_a_healthy_training(dataset: Dataset, tmp_path: Path) -> None:
    watched = cases.train_into(cases.recipe("gan"), dataset, tmp_path / "watched")
    alone = cases.train_into(cases.recipe("gan", collapse=0.0), dataset, tmp_path / "alone")
    assert watched.weights_sha256 == alone.weights_sha256
    assert (watched.ended, watched.reason) == ("finished", "")
    assert "coverage" not in (tmp_path / "alone/out/curve.csv").read_text()


def test_an_old_record_without_an_ending_is_read_as_finished(dataset: Dataset, tmp_path: Path) -> None:
    trained = cases.train_into(cases.recipe("gan", steps=3), dataset, tmp_path)
    older = {key: value for key, value in trained.to_json().items() if key not in ("ended", "reason")}
    assert TrainedModel.model_validate(older) == trained


def test_training_improves_the_score(dataset: Dataset, tmp_path: Path) -> None:
    short = cases.train_into(cases.recipe("vae", steps=5), dataset, tmp_path / "short")
    long = cases.train_into(cases.recipe("vae", steps=200, learning_rate=0.01), dataset, tmp_path / "long")
    assert short.validation is not None
    assert long.validation is not None
    assert long.validation < short.validation - 0.1  # bits/dim


def test_a_checkpoint_of_other_data_settings_or_code_is_never_resumed(dataset: Dataset, tmp_path: Path) -> None:
    from remint.training import train

    seen = set()
    for code, seed in (("a", 0), ("b", 0), ("a", 1)):
        recipe = cases.recipe("gan", steps=3, seed=seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.Checkpoints, "delete", lambda self: seen.add(self.digest))
            train.train_pipeline(
                recipe, "tiny", dataset, checkpoints=tmp_path / "c", out=tmp_path / "out", code_sha256=code, command=[]
            )
    assert len(seen) == 3


PARAMS = """
datasets:
  tiny: {source: images.npz, levels: 5}
pipelines:
  tiny:
    dataset: tiny
    family: gan
    model: {latent: 4, hidden: 8}
    training: %s
    evaluation: {}
    promotion: {}
"""


def pipelines_train(folder: Path, training: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "params.yaml").write_text(PARAMS % training)
    command = [sys.executable, "-m", "pipelines.train", "tiny"]
    return subprocess.run(command, cwd=folder, env=cases.environment() | environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_step_reads_params_yaml_and_writes_outs(tmp_path: Path) -> None:
    cases.prepare(tmp_path)
    events = tmp_path / "events"
    done = pipelines_train(tmp_path, "{steps: 4, batch_size: 8}", REMINT_HOME=str(tmp_path / "home"), REMINT_EVENTS=str(events))
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in events.read_text().splitlines()]
    assert [event["event"] for event in said] == ["started", "progress", "metrics", "progress", "ended"]
    assert said[2].keys() >= {"event", "at", "step", "critic_loss", "generator_loss", "r1", "r2", "coverage", "reached"}
    assert said[3].keys() == said[2].keys() | {"steps", "seconds"}
    assert (said[3]["step"], said[3]["steps"]) == (4, 4)
    trained = TrainedModel.read(tmp_path / "outs/trained/tiny/training.json")
    assert trained.steps == 4
    assert trained.key == digest({"weights": trained.weights_sha256, "dataset": trained.dataset, "recipe": trained.recipe})
    assert list((tmp_path / "home/checkpoints").iterdir()) == []

    refused = pipelines_train(tmp_path, "{batch_size: 64, devices: 64}", REMINT_EVENTS=str(events))
    assert refused.returncode == 2
    (line,) = (line for line in refused.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: params.yaml: pipelines.tiny.training.devices: 64 is more than this machine has (")
    assert ": set devices to at most " in line
    event = json.loads(events.read_text().splitlines()[-1])
    assert (event["event"], event["kind"]) == ("error", "ResourceError")
    assert not (tmp_path / ".remint").exists()
