"""A training that is killed, stopped or damaged ends where the uninterrupted one does, to the bit. Real processes, real signals."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remint.data.arrays import Dataset
from remint.errors import Interrupted, RunError, StorageError
from remint.processes import stopping
from remint.training import guard, loop, train
from tests import training_cases as cases


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    cases.prepare(made)
    return made


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return cases.load(folder)


def train_elsewhere(folder: Path, home: Path, *options: str, **training: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        cases.__file__,
        str(folder),
        home.name,
        json.dumps(training | {"home": str(home.parent)}),
        *options,
    ]
    return subprocess.run(command, env=cases.environment(), capture_output=True, text=True, check=False, timeout=120)


def only_checkpoints(home: Path) -> list[str]:
    (folder,) = (home / "checkpoints").iterdir()
    return sorted(path.name for path in folder.glob("step-*"))


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_a_killed_training_resumes_to_the_same_bytes(family: str, folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    whole = cases.run(cases.recipe(family), dataset, tmp_path / "whole")
    killed = train_elsewhere(folder, tmp_path / family, "die=7")
    assert killed.returncode == -signal.SIGKILL
    assert only_checkpoints(tmp_path / family) == ["step-00000003", "step-00000006"]
    assert not (tmp_path / family / "out").exists()
    assert cases.run(cases.recipe(family), dataset, tmp_path / family) == whole
    assert cases.contents(tmp_path / family) == cases.contents(tmp_path / "whole")


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_resume_at_every_step(family: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run that is stopped after every single step, so that every step begins from a checkpoint."""
    recipe = cases.recipe(family)
    cases.run(recipe, dataset, tmp_path / "whole")
    real, resumed = loop.batch_indices, []

    def batch_indices(count: int, batch_size: int, seed: int, step: int) -> object:
        resumed.append(step)
        stopping.set()
        return real(count, batch_size, seed, step)

    monkeypatch.setattr(loop, "batch_indices", batch_indices)
    for step in range(1, recipe.training.steps):
        with pytest.raises(Interrupted, match=f"after step {step} of 12"):
            cases.run(recipe, dataset, tmp_path / "pieces")
    cases.run(recipe, dataset, tmp_path / "pieces")
    assert resumed == list(range(recipe.training.steps)), "no step was run twice and none left out"
    assert cases.contents(tmp_path / "pieces") == cases.contents(tmp_path / "whole")


def test_patience_and_the_best_weights_survive_a_stop(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = cases.recipe("flow", learning_rate=0.2, final_learning_rate=1.0, validate_every=1, steps=40, patience=3)
    whole = cases.run(recipe, dataset, tmp_path / "whole")
    assert whole.steps == whole.best_step + 3 < 40, "the case must be one that patience ends"
    real = loop.batch_indices

    def batch_indices(count: int, batch_size: int, seed: int, step: int) -> object:
        if step == whole.best_step + 1:
            stopping.set()
        return real(count, batch_size, seed, step)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "batch_indices", batch_indices)
        cases.run(recipe, dataset, tmp_path / "pieces")
    assert cases.run(recipe, dataset, tmp_path / "pieces") == whole
    assert cases.contents(tmp_path / "pieces") == cases.contents(tmp_path / "whole")


# Of a tiny GAN that has hardly begun, whose samples must cover all that real examples do.
HOPELESS = {"steps": 60, "batch_size": 4, "learning_rate": 1e-4, "validate_every": 2, "collapse": 1.0}


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard may judge what has hardly begun."""
    monkeypatch.setattr(guard, "EARLIEST", 0)


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("before_the_end", [1, 4, 11])
def test_a_collapse_survives_a_stop(
    before_the_end: int, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = cases.recipe("gan", **HOPELESS)
    whole = cases.run(recipe, dataset, tmp_path / "whole")
    assert whole.ended == "collapsed", "the case must be one that the guard ends"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "batch_indices", loop.batch_indices)
        cases.at_step(whole.steps - 1 - before_the_end, signal.SIGTERM)
        cases.run(recipe, dataset, tmp_path / "pieces")
    assert cases.run(recipe, dataset, tmp_path / "pieces") == whole
    assert cases.contents(tmp_path / "pieces") == cases.contents(tmp_path / "whole")


@pytest.mark.usefixtures("early")
def test_a_training_that_has_ended_is_not_trained_on(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between its last checkpoint and the model: the rows say that it has collapsed."""
    recipe = cases.recipe("gan", **HOPELESS)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed here"):
        patch.setattr(train, "_write", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
        cases.run(recipe, dataset, tmp_path / "pieces")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "batch_indices", lambda *_: pytest.fail("it trained on"))
        again = cases.run(recipe, dataset, tmp_path / "pieces")
    assert again == cases.run(recipe, dataset, tmp_path / "whole")
    assert cases.contents(tmp_path / "pieces") == cases.contents(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_only_its_own_steps(
    folder: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases.run(cases.recipe("gan"), dataset, tmp_path / "whole")
    train_elsewhere(folder, tmp_path / "gan", "die=8")
    (damaged,) = (tmp_path / "gan/checkpoints").glob("*/step-00000006/tensors.safetensors")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    cases.run(cases.recipe("gan"), dataset, tmp_path / "gan")
    said = capsys.readouterr().err
    assert "damaged_checkpoint step=6" in said
    assert "resumed step=3" in said
    assert cases.contents(tmp_path / "gan") == cases.contents(tmp_path / "whole")


def test_a_training_that_moved_to_another_machine_says_so(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights may be compared, to the bit, with those of neither machine."""
    recipe = cases.recipe("gan")
    here = cases.run(recipe, dataset, tmp_path / "here").fingerprint
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "batch_indices", loop.batch_indices)
        patch.setattr(train, "fingerprint", lambda *_: {**here, "processor": "another"})
        cases.at_step(4, signal.SIGTERM)
        cases.run(recipe, dataset, tmp_path / "moved")
    moved = cases.run(recipe, dataset, tmp_path / "moved").fingerprint
    assert moved == here | {"earlier": [here | {"processor": "another"}]}


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_keeps_it(
    sign: signal.Signals, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases.run(cases.recipe("vae"), dataset, tmp_path / "whole")
    before = signal.getsignal(sign)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 5 of 12: a checkpoint is kept"):
        patch.setattr(loop, "batch_indices", loop.batch_indices)
        cases.at_step(4, sign)
        cases.run(cases.recipe("vae"), dataset, tmp_path / "stopped")
    assert signal.getsignal(sign) is before
    assert not stopping.is_set()
    assert only_checkpoints(tmp_path / "stopped") == ["step-00000003", "step-00000005"]
    cases.run(cases.recipe("vae"), dataset, tmp_path / "stopped")
    assert cases.contents(tmp_path / "stopped") == cases.contents(tmp_path / "whole")


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint_before(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = cases.recipe("vae")
    cases.run(recipe, dataset, tmp_path / "whole")
    real = loop.batch_indices
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def batch_indices(count: int, batch_size: int, seed: int, step: int) -> object:
        if step == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        return real(count, batch_size, seed, step)

    try:
        with monkeypatch.context() as patch, pytest.raises(StorageError, match="no room to write .*step-00000009"):
            patch.setattr(loop, "batch_indices", batch_indices)
            cases.run(recipe, dataset, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert only_checkpoints(tmp_path / "full") == ["step-00000003", "step-00000006"]
    cases.run(recipe, dataset, tmp_path / "full")
    assert cases.contents(tmp_path / "full") == cases.contents(tmp_path / "whole")


def test_a_disk_that_is_full_when_the_model_is_written_costs_no_step(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = cases.recipe("vae")
    real = train.save_model
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_model(*arguments: Any) -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        return real(*arguments)

    try:
        with monkeypatch.context() as patch, pytest.raises(StorageError, match="no room to write .*out"):
            patch.setattr(train, "save_model", save_model)
            cases.run(recipe, dataset, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"], "no half-written model"
    cases.run(recipe, dataset, tmp_path)
    assert "resumed step=12" in capsys.readouterr().err


def test_a_second_training_of_the_same_is_refused(
    folder: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = loop.batch_indices, []

    def batch_indices(count: int, batch_size: int, seed: int, step: int) -> object:
        if step == 5:
            refused.append(train_elsewhere(folder, tmp_path / "gan"))
        return real(count, batch_size, seed, step)

    monkeypatch.setattr(loop, "batch_indices", batch_indices)
    cases.run(cases.recipe("gan"), dataset, tmp_path / "gan")
    (second,) = refused
    assert second.returncode != 0
    assert f"{RunError.__name__}: this training is already under way: the training of tiny, process" in second.stderr
