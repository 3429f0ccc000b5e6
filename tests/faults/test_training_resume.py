"""A killed, stopped or damaged training has the same result as an uninterrupted one, to the bit. Processes and signals are real."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remint.data.arrays import Dataset
from remint.errors import Interrupted, RunError, StepError, StorageError
from remint.records import TrainedModel
from remint.runtime.processes import stopping
from remint.training import guard, train
from remint.training import step as training_step
from remint.training.checkpoint import Checkpoints
from tests.support import training_cases as cases
from tests.support.trials import Trials


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return cases.load(folder)


@pytest.fixture
def restoring_patch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Monkeypatch that undoes cases.signal_at_step and cases.set_infinite_learning_rate at the end."""
    monkeypatch.setattr(training_step, "batch_indices", training_step.batch_indices)
    monkeypatch.setattr(training_step, "rollback_factor", training_step.rollback_factor)
    return monkeypatch


def train_in_process(folder: Path, home: Path, *options: str, **training: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        cases.__file__,
        str(folder),
        home.name,
        json.dumps(training | {"home": str(home.parent)}),
        *options,
    ]
    return subprocess.run(command, env=cases.environment(), capture_output=True, text=True, check=False, timeout=120)


def checkpoint_names(home: Path) -> list[str]:
    (folder,) = (home / "checkpoints").iterdir()
    return sorted(path.name for path in folder.glob("step-*"))


@pytest.mark.parametrize(
    ("family", "count", "diverges"),
    [
        pytest.param("flow", 7, False, marks=pytest.mark.soak),
        pytest.param("gan", 7, False, marks=pytest.mark.soak),
        ("pixelcnn", 13, True),  # killed within the skipped steps, which are made twice
        ("vae", 25, True),  # killed after the rollback
        ("vaegan", 7, False),
    ],
)
def test_a_killed_training_resumes_to_the_same_bytes(
    family: str, count: int, diverges: bool, folder: Path, dataset: Dataset, tmp_path: Path, restoring_patch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 20, "validate_every": 20} if diverges else {}
    killed = train_in_process(folder, tmp_path / family, f"die={count}", *(["ruin=7"] if diverges else []), **settings)
    assert killed.returncode == -signal.SIGKILL
    assert ("rolled_back" in killed.stderr) == (count == 25)
    assert checkpoint_names(tmp_path / family)[:2] == ["step-00000003", "step-00000006"]
    assert not (tmp_path / family / "out").exists()
    if diverges:
        cases.set_infinite_learning_rate(7)
    whole = cases.train_into(cases.recipe(family, **settings), dataset, tmp_path / "whole")
    assert cases.train_into(cases.recipe(family, **settings), dataset, tmp_path / family) == whole
    assert cases.file_contents(tmp_path / family) == cases.file_contents(tmp_path / "whole")


@pytest.mark.case(3)
def test_resume_at_every_step(trials: Trials, dataset: Dataset, tmp_path: Path, restoring_patch: pytest.MonkeyPatch) -> None:
    """A run of 30 steps of every family is stopped after each step in turn."""
    wholes: dict[str, TrainedModel] = {}
    for trial in trials(short=5, full=5 * 29):
        family, place = cases.FAMILIES[trial.number % 5], trial.number // 5
        step = (7 * place + 6) % 29 + 1  # each of 1 .. 29 once
        recipe = cases.recipe(family, steps=30)
        if family not in wholes:
            wholes[family] = cases.train_into(recipe, dataset, tmp_path / f"{family}-whole")
        home = tmp_path / f"{family}-{step}"
        with restoring_patch.context() as patch, pytest.raises(Interrupted, match=f"after step {step} of 30"):
            patch.setattr(training_step, "batch_indices", training_step.batch_indices)
            cases.signal_at_step(step - 1, signal.SIGTERM)
            cases.train_into(recipe, dataset, home)
        assert cases.train_into(recipe, dataset, home) == wholes[family]
        assert cases.file_contents(home) == cases.file_contents(tmp_path / f"{family}-whole")
        trial.note(different=0)


CHAINS = [("gan", False), ("flow", True), *((family, diverges) for diverges in (False, True) for family in cases.FAMILIES)]


@pytest.mark.case(5)
def test_twenty_resumes_within_one_run(
    trials: Trials, dataset: Dataset, tmp_path: Path, restoring_patch: pytest.MonkeyPatch
) -> None:
    """Stopped after every step, so that every step starts from a checkpoint, also with skipped steps and rollbacks."""
    for trial in trials(short=2, full=len(CHAINS)):
        family, diverges = CHAINS[trial.number]
        recipe = cases.recipe(family, steps=21)
        whole, home = tmp_path / f"{trial.number}-whole", tmp_path / f"{trial.number}-pieces"
        with restoring_patch.context() as patch:
            patch.setattr(training_step, "rollback_factor", training_step.rollback_factor)
            if diverges:
                cases.set_infinite_learning_rate(7)
            cases.train_into(recipe, dataset, whole)
            real, run = training_step.batch_indices, list[int]()

            def batch_indices(count: int, batch_size: int, seed: int, step: int, real: Any = real, run: list[int] = run) -> Any:
                run.append(step)
                stopping.set()
                return real(count, batch_size, seed, step)

            patch.setattr(training_step, "batch_indices", batch_indices)
            resumes = 0
            while True:
                try:
                    cases.train_into(recipe, dataset, home)
                    break
                except Interrupted:
                    resumes += 1
        assert resumes >= 20
        assert diverges or run == list(range(21)), "no step was run twice and none left out"
        assert cases.file_contents(home) == cases.file_contents(whole)
        assert ("skipped" in (home / "out/curve.csv").read_text()) == (diverges and family in ("gan", "vaegan"))
        trial.note(resumes=resumes, different=0)


def test_patience_and_the_best_weights_survive_an_interruption(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = cases.recipe("flow", learning_rate=0.2, final_learning_rate=1.0, validate_every=1, steps=40, patience=3)
    whole = cases.train_into(recipe, dataset, tmp_path / "whole")
    assert whole.steps == whole.best_step + 3 < 40, "the case must be one that patience ends"
    real = training_step.batch_indices

    def batch_indices(count: int, batch_size: int, seed: int, step: int) -> object:
        if step == whole.best_step + 1:
            stopping.set()
        return real(count, batch_size, seed, step)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training_step, "batch_indices", batch_indices)
        cases.train_into(recipe, dataset, tmp_path / "pieces")
    assert cases.train_into(recipe, dataset, tmp_path / "pieces") == whole
    assert cases.file_contents(tmp_path / "pieces") == cases.file_contents(tmp_path / "whole")


# A tiny GAN after few steps, whose samples must have the coverage of real examples: the guard stops it.
COLLAPSING = {"steps": 60, "batch_size": 4, "learning_rate": 1e-4, "validate_every": 2, "collapse": 1.0}


@pytest.fixture
def guard_from_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard may judge from the first step."""
    monkeypatch.setattr(guard, "MIN_STEPS", 0)


@pytest.mark.usefixtures("guard_from_start")
@pytest.mark.parametrize("before_the_end", [1, 4, 11])
def test_a_collapse_is_the_same_after_an_interruption(
    before_the_end: int, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = cases.recipe("gan", **COLLAPSING)
    whole = cases.train_into(recipe, dataset, tmp_path / "whole")
    assert whole.ended == "collapsed", "the case must be one that the guard ends"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training_step, "batch_indices", training_step.batch_indices)
        cases.signal_at_step(whole.steps - 1 - before_the_end, signal.SIGTERM)
        cases.train_into(recipe, dataset, tmp_path / "pieces")
    assert cases.train_into(recipe, dataset, tmp_path / "pieces") == whole
    assert cases.file_contents(tmp_path / "pieces") == cases.file_contents(tmp_path / "whole")


@pytest.mark.usefixtures("guard_from_start")
def test_a_collapsed_training_is_not_continued(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed after its last checkpoint, before it writes the model. The checkpoint's rows record the collapse."""
    recipe = cases.recipe("gan", **COLLAPSING)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed here"):
        patch.setattr(train, "_write", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
        cases.train_into(recipe, dataset, tmp_path / "pieces")
    with monkeypatch.context() as patch:
        patch.setattr(training_step, "batch_indices", lambda *_: pytest.fail("it trained on"))
        again = cases.train_into(recipe, dataset, tmp_path / "pieces")
    assert again == cases.train_into(recipe, dataset, tmp_path / "whole")
    assert cases.file_contents(tmp_path / "pieces") == cases.file_contents(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_only_its_own_steps(
    folder: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases.train_into(cases.recipe("gan"), dataset, tmp_path / "whole")
    train_in_process(folder, tmp_path / "gan", "die=8")
    (damaged,) = (tmp_path / "gan/checkpoints").glob("*/step-00000006/tensors.safetensors")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    cases.train_into(cases.recipe("gan"), dataset, tmp_path / "gan")
    stderr = capsys.readouterr().err
    assert "damaged_checkpoint step=6 kept=" in stderr
    assert "resumed step=3" in stderr
    assert cases.file_contents(tmp_path / "gan") == cases.file_contents(tmp_path / "whole")


def test_a_training_that_moved_to_another_machine_records_both(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are not comparable to the bit with a training on one of the machines."""
    recipe = cases.recipe("gan")
    here = cases.train_into(recipe, dataset, tmp_path / "here").fingerprint
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training_step, "batch_indices", training_step.batch_indices)
        patch.setattr(train, "fingerprint", lambda *_: {**here, "processor": "another"})
        cases.signal_at_step(4, signal.SIGTERM)
        cases.train_into(recipe, dataset, tmp_path / "moved")
    moved = cases.train_into(recipe, dataset, tmp_path / "moved").fingerprint
    assert moved == here | {"earlier": [here | {"processor": "another"}]}


@pytest.mark.case(7)
def test_a_signal_leaves_a_whole_checkpoint_and_no_process(
    trials: Trials, folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """A real process, stopped at any step; the resumed training has the same bytes."""
    wholes: set[str] = set()
    for trial in trials(short=1, full=50):
        family, step = trial.random.choice(cases.FAMILIES), trial.random.randrange(12)
        if family not in wholes:
            cases.train_into(cases.recipe(family), dataset, tmp_path / "whole" / family)
            wholes.add(family)
        home = tmp_path / str(trial.number) / family
        stopped = train_in_process(folder, home, f"stop={step}")
        if step == 11:  # the last step: it completes
            assert stopped.returncode == 0
        else:
            assert f"Interrupted: interrupted after step {step + 1} of 12: a checkpoint is kept" in stopped.stderr
            (kept,) = (home / "checkpoints").iterdir()
            marker = json.loads((kept / "PREEMPTED").read_text())
            assert (marker["step"], marker["seconds"] < 20) == (step + 1, True)
            assert Checkpoints(kept.parent, kept.name).newest() == step + 1
            cases.train_into(cases.recipe(family), dataset, home)
        assert cases.file_contents(home) == cases.file_contents(tmp_path / "whole" / family)
        trial.note(lost_steps=0)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_training_after_the_step_with_a_checkpoint(
    sign: signal.Signals, dataset: Dataset, tmp_path: Path, restoring_patch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(sign)
    with pytest.raises(Interrupted, match="after step 5 of 12: a checkpoint is kept"):
        cases.signal_at_step(4, sign)
        cases.train_into(cases.recipe("vae"), dataset, tmp_path / "stopped")
    assert signal.getsignal(sign) is before
    assert not stopping.is_set()
    assert checkpoint_names(tmp_path / "stopped") == ["step-00000003", "step-00000005"]
    (marker,) = (tmp_path / "stopped/checkpoints").glob("*/PREEMPTED")
    with restoring_patch.context() as patch, pytest.raises(StepError, match="looked"):
        patch.setattr(training_step, "seed_layers", lambda *_: (_ for _ in ()).throw(StepError(f"looked: {marker.exists()}")))
        cases.train_into(cases.recipe("vae"), dataset, tmp_path / "stopped")
    assert not marker.exists(), "it goes on"


def small_disk(place: Path, pages: int) -> bool:
    """Mount a file system of so many pages. Return False if that is not permitted."""
    place.mkdir()
    size = f"size={4 * pages}k"
    return (
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(place)], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.case(17)
def test_a_disk_that_is_full_anywhere_costs_the_checkpoint_that_was_being_written(
    trials: Trials, dataset: Dataset, tmp_path: Path, restoring_patch: pytest.MonkeyPatch
) -> None:
    """Every second disk is really full, if a mount is permitted; the others have a limit on the file size."""
    restoring_patch.setenv("REMINT_EVENTS", os.devnull)  # the limit applies to all files of this process
    recipe, sizes = cases.recipe("vae"), list[int]()
    with restoring_patch.context() as patch:
        patch.setattr(Checkpoints, "delete", lambda self: sizes.extend(f.stat().st_size for f in self.at(12).iterdir()))
        cases.train_into(recipe, dataset, tmp_path / "whole")
    pages = sum(-(-size // 4096) for size in sizes)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for trial in trials(short=4, full=50):
        home, offset = tmp_path / str(trial.number), trial.random.randrange(max(sizes))
        home.mkdir()
        mounted = trial.number % 2 == 0 and small_disk(home / "checkpoints", trial.random.randrange(4, 3 * pages))
        if not mounted:
            step = 3 * trial.random.randrange(1, 5)
            real = training_step.batch_indices

            def batch_indices(*arguments: Any, step: int = step, offset: int = offset, real: Any = real) -> Any:
                if arguments[3] == step - 1:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (offset, hard))
                return real(*arguments)

            restoring_patch.setattr(training_step, "batch_indices", batch_indices)
        try:
            with pytest.raises(StorageError, match=r"no room to write .*step-(\d+)") as full:
                cases.train_into(recipe, dataset, home)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            (kept,) = (home / "checkpoints").iterdir()
            steps = Checkpoints(kept.parent, kept.name).steps()
            failed = int(str(full.value).partition("step-")[2][:8])
            assert steps == [before for before in (3, 6, 9) if before < failed][-2:]
            assert Checkpoints(kept.parent, kept.name).newest() == (steps[-1] if steps else None), "what is there loads"
            if mounted:
                subprocess.run(["mount", "-o", "remount,size=10m", str(home / "checkpoints")], check=True)
            else:
                restoring_patch.setattr(training_step, "batch_indices", real)
            cases.train_into(recipe, dataset, home)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            if mounted:
                subprocess.run(["umount", str(home / "checkpoints")], check=True)
        assert cases.file_contents(home) == cases.file_contents(tmp_path / "whole")
        trial.note(checkpoints_lost=0, **{"on a full disk" if mounted else "at a limit": 1})


def test_a_full_disk_when_the_model_is_written_costs_no_step(
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
            cases.train_into(recipe, dataset, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"], "no half-written model"
    cases.train_into(recipe, dataset, tmp_path)
    assert "resumed step=12" in capsys.readouterr().err


def test_a_second_run_of_the_same_training_is_refused(
    folder: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = training_step.batch_indices, []

    def batch_indices(count: int, batch_size: int, seed: int, step: int) -> object:
        if step == 5:
            refused.append(train_in_process(folder, tmp_path / "gan"))
        return real(count, batch_size, seed, step)

    monkeypatch.setattr(training_step, "batch_indices", batch_indices)
    cases.train_into(cases.recipe("gan"), dataset, tmp_path / "gan")
    (second,) = refused
    assert second.returncode != 0
    assert f"{RunError.__name__}: this training already runs: the training of tiny, process" in second.stderr
