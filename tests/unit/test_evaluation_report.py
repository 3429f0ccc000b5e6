"""From a sealed bundle to a report folder, by the library and by the step."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remint.data import arrays, sources, splits
from remint.errors import DataError, IntegrityError, RunError
from remint.evaluation import features, report
from remint.evaluation.evaluate import evaluate
from remint.evaluation.evidence import Evidence
from remint.models import bundle, families
from remint.models.contract import Model
from remint.records import DataSpec, TrainedModel
from remint.runtime import manifest
from remint.settings import plugins
from remint.settings.dataset import DatasetSettings
from remint.settings.judging import EvaluationSettings

pytestmark = pytest.mark.usefixtures("forked")

ROOT = Path(__file__).parents[2]
QUICK = EvaluationSettings(samples=40, draws=3, importance_samples=4)
PARAMS = """
datasets:
  tiny: {source: images.npy, levels: 5}
pipelines:
  tiny-vae:
    dataset: tiny
    family: vae
    model: {latent: 2, hidden: 8, layers: 1}
    training: {}
    evaluation: {samples: 40, draws: 3, importance_samples: 4}
    promotion: {}
"""


def make_bundle(folder: Path, spec: DataSpec, spoil: Callable[[Model], object] = lambda model: None) -> Path:
    """Make the bundle of a VAE before its first step."""
    settings = plugins.settings_of("vae").model_validate({"latent": 2, "hidden": 8, "layers": 1})
    torch.manual_seed(0)
    model = families.family("vae").build(settings, spec)
    with torch.no_grad():
        spoil(model)
    facts: dict[str, Any] = {
        "pipeline": "tiny-vae",
        "dataset": "",
        "spec": spec,
        "recipe": {},
        "fingerprint": {},
        "world_size": 1,
    }
    trained = TrainedModel(
        weights_sha256=bundle.save_model(folder, model, "vae", settings, spec), steps=2, best_step=1, validation=None, **facts
    )
    trained.write(folder / "training.json")
    (folder / "curve.csv").write_text("step,elbo_loss,validation\n1,2.5,2.4\n2,2.3,\n")
    manifest.seal(folder)
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Make a folder in which the steps before ``evaluate`` have run."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(5, size=(300, 4, 4), dtype=np.uint8))
    settings = DatasetSettings(source="images.npy", levels=5)
    sources.snapshot("tiny", settings, tmp_path, tmp_path / "outs/raw/tiny")
    splits.prepare("tiny", settings, tmp_path / "outs/raw/tiny", tmp_path / "outs/prepared/tiny")
    dataset = arrays.load(tmp_path / "outs/prepared/tiny")
    features.fit(dataset, tmp_path / "outs/features/tiny-vae")
    make_bundle(tmp_path / "outs/trained/tiny-vae", dataset.spec)
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


def judge(workspace: Path, folder: Path | None = None) -> Evidence:
    folder = folder or workspace / "outs/trained/tiny-vae"
    dataset = arrays.load(workspace / "outs/prepared/tiny")
    return evaluate(folder, dataset, workspace / "outs/features/tiny-vae", QUICK, ["elbo", "iwae", "fd_domain"], "tiny-vae")


def run_step(workspace: Path, step: str, key: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "MPLCONFIGDIR": str(workspace / ".mpl"),
        **environment,
    }
    command = [sys.executable, "-m", f"pipelines.{step}", key]
    return subprocess.run(command, cwd=workspace, env=variables, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_evidence_names_its_model_and_its_data(workspace: Path) -> None:
    evidence = judge(workspace)
    trained = TrainedModel.read(workspace / "outs/trained/tiny-vae/training.json")
    dataset = arrays.load(workspace / "outs/prepared/tiny")
    assert evidence.report.model_key == trained.key and evidence.report.weights_sha256 == trained.weights_sha256
    assert evidence.report.dataset == dataset.version.digest
    assert set(evidence.report.metrics) == {"elbo", "iwae", "fd_domain"}
    assert set(evidence.values) == {"elbo", "iwae", "fd_domain", "fd_domain:reference"}
    for name, value in evidence.report.metrics.items():
        assert value.value == evidence.values[name].mean() and value.low < value.value < value.high
    assert evidence.report.metrics["iwae"].value < evidence.report.metrics["elbo"].value
    repeats = evidence.report.metrics["elbo"].repeats
    assert repeats > QUICK.importance_samples, "the noise of this model needs more samples than IWAE-4 has"


def test_a_report_is_loaded_as_it_was_saved(workspace: Path) -> None:
    evidence = judge(workspace)
    report.write(evidence, workspace / "outs/trained/tiny-vae", arrays.load(workspace / "outs/prepared/tiny"), workspace / "r")
    loaded = Evidence.load(workspace / "r")
    assert loaded.report.metrics == evidence.report.metrics
    for name, values in evidence.values.items():
        np.testing.assert_array_equal(loaded.values[name], values)
    numbers = json.loads((workspace / "r/metrics.json").read_text())
    assert numbers["iwae"] == evidence.report.metrics["iwae"].value and numbers["factorised"] > 0
    samples = np.load(workspace / "r/samples.npy", allow_pickle=False)
    assert samples.shape == (64, 1, 4, 4) and samples.max() < 5


@pytest.mark.slow
def test_the_step_writes_the_same_bytes_twice_and_evaluates_a_bundle_in_another_folder(workspace: Path) -> None:
    assert run_step(workspace, "evaluate", "tiny-vae").returncode == 0
    first = contents(workspace / "outs/reports/tiny-vae")
    pictures = {f"{name}.png" for name in ("curve", "samples", "likelihood", "nearest", "failures")}
    records = {"report.json", "values.npz", "metrics.json", "curve.csv", "training.json", "nearest.npz", "failures.npz"}
    assert pictures | records <= set(first)
    champion = make_bundle(workspace / "champion", DataSpec(shape=(1, 4, 4), levels=5))
    events = workspace / "events"
    elsewhere = {"REMINT_EVALUATE_BUNDLE": str(champion), "REMINT_EVALUATE_OUT": str(workspace / "elsewhere")}
    assert run_step(workspace, "evaluate", "tiny-vae", REMINT_EVENTS=str(events), **elsewhere).returncode == 0
    assert contents(workspace / "outs/reports/tiny-vae") == first
    assert contents(workspace / "elsewhere") == first  # equal weights: an equal report, picture by picture
    said = [json.loads(line) for line in events.read_text().splitlines()]
    steps = [event["step"] for event in said if event["event"] == "progress"]
    assert sorted(set(steps)) == [0, 1, 2, 3, 4] and steps == sorted(steps)  # more than one where a pass takes seconds


@pytest.mark.slow
def test_the_earlier_steps_give_the_same_as_the_library(workspace: Path) -> None:
    before = contents(workspace / "outs")
    for step, key in (("snapshot", "tiny"), ("prepare", "tiny"), ("features", "tiny-vae")):
        assert run_step(workspace, step, key).returncode == 0
    assert contents(workspace / "outs") == before


def test_raw_data_is_found_in_the_users_tree(workspace: Path) -> None:
    before = contents(workspace / "outs/raw")
    (workspace / "mine").mkdir()
    (workspace / "images.npy").rename(workspace / "mine/images.npy")
    assert run_step(workspace, "snapshot", "tiny", REMINT_SOURCES=str(workspace / "mine")).returncode == 0
    assert contents(workspace / "outs/raw") == before
    missing = run_step(workspace, "snapshot", "tiny", REMINT_SOURCES=str(workspace))
    assert missing.returncode == 2 and "there is no file" in missing.stderr and "Traceback" not in missing.stderr


@pytest.mark.soak
@pytest.mark.slow
def test_a_damaged_bundle_is_not_evaluated(workspace: Path) -> None:
    weights = workspace / "outs/trained/tiny-vae/weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-7] ^= 16
    weights.write_bytes(damaged)
    with pytest.raises(IntegrityError, match=r"weights\.safetensors is damaged"):
        judge(workspace)
    done = run_step(workspace, "evaluate", "tiny-vae")
    assert done.returncode == 1 and not (workspace / "outs/reports").exists()


def test_nonfinite_weights_are_not_evaluated(workspace: Path) -> None:
    def diverge(model: Model) -> None:
        next(model.parameters()).view(-1)[3] = float("nan")

    broken = make_bundle(workspace / "broken", DataSpec(shape=(1, 4, 4), levels=5), diverge)
    with pytest.raises(RunError, match="are not finite: training diverged"):
        judge(workspace, broken)


def test_a_champion_of_other_images_is_not_comparable(workspace: Path) -> None:
    other = make_bundle(workspace / "other", DataSpec(shape=(1, 4, 4), levels=7))
    with pytest.raises(DataError, match="with 7 levels; dataset tiny now has"):
        judge(workspace, other)
