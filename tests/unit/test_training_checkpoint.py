"""Checkpoints: exact, written completely or not at all, and all damage is found."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from remint.errors import IntegrityError, RunError, StorageError
from remint.training.checkpoint import Checkpoints
from tests.support.training_cases import environment
from tests.support.trials import Trials

TENSORS = {
    "weight": torch.tensor([1 / 3, -0.0, float("inf")]),
    "table": torch.arange(6, dtype=torch.float64).view(2, 3) / 7,
    "count": torch.tensor(5),
    "flag": torch.tensor([True, False]),
}
NOTES = {"step": 4, "rows": [{"step": 2, "validation": 0.1 + 0.2}]}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "checkpoints", "abc")
    made.write(2, TENSORS, NOTES)
    made.write(4, TENSORS, NOTES)
    return made


def test_a_checkpoint_is_read_exactly_as_written(checkpoints: Checkpoints) -> None:
    tensors, notes = checkpoints.read(4)
    assert notes == NOTES
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert tensors[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_the_last_two_checkpoints_are_kept(checkpoints: Checkpoints) -> None:
    checkpoints.write(1000, TENSORS, NOTES)
    assert checkpoints.steps() == [4, 1000]
    assert checkpoints.newest() == 1000


FILES = ("manifest.json", "notes.json", "tensors.safetensors")


def damaged(checkpoints: Checkpoints, name: str, damage: Callable[[bytes], bytes]) -> None:
    """Damage a file of checkpoint 4: it is quarantined unchanged, checkpoint 2 is used, and 4 is restored."""
    path = checkpoints.at(4) / name
    before = path.read_bytes()
    path.write_bytes(damage(before))
    with pytest.raises(IntegrityError):
        checkpoints.read(4)
    assert checkpoints.newest() == 2
    aside = checkpoints.folder / "damaged-00000004"
    assert (checkpoints.steps(), (aside / name).read_bytes()) == ([2], damage(before))
    aside.rename(checkpoints.at(4))
    path.write_bytes(before)
    assert checkpoints.newest() == 4


@pytest.mark.case(18)
def test_every_flipped_bit_of_a_checkpoint_is_found_and_the_one_before_is_used(
    trials: Trials, checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    for trial in trials(short=60, full=1000):
        name = FILES[trial.number % 3]
        place, bit = trial.random.randrange((checkpoints.at(4) / name).stat().st_size), trial.random.randrange(8)
        damaged(checkpoints, name, lambda content, i=place, b=bit: content[:i] + bytes([content[i] ^ 1 << b]) + content[i + 1 :])
        trial.note(missed=0)
    assert f"damaged_checkpoint step=4 kept={checkpoints.folder}/damaged-00000004 message=" in capsys.readouterr().err


@pytest.mark.case(19)
def test_every_truncation_of_a_checkpoint_is_found_and_the_one_before_is_used(trials: Trials, checkpoints: Checkpoints) -> None:
    for trial in trials(short=30, full=1000):
        name = FILES[trial.number % 3]
        length = trial.random.randrange((checkpoints.at(4) / name).stat().st_size)
        damaged(checkpoints, name, lambda content, n=length: content[:n])
        trial.note(missed=0)


def test_a_missing_file_is_found_and_quarantined_files_outlive_the_training(checkpoints: Checkpoints) -> None:
    for step in (2, 4):
        (checkpoints.at(step) / FILES[step % 3]).unlink()
    checkpoints.write(6, TENSORS, NOTES, keep=(2, 4))
    (checkpoints.at(6) / FILES[0]).write_bytes(b"")
    assert checkpoints.newest() is None
    with checkpoints.held("me"):
        checkpoints.delete()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [f"damaged-0000000{step}" for step in (2, 4, 6)]


def test_rollback_checkpoints_are_kept_and_later_ones_deleted(checkpoints: Checkpoints) -> None:
    for step in (6, 8, 10):
        checkpoints.write(step, TENSORS, NOTES, keep=(2, 6))
    assert checkpoints.steps() == [2, 6, 8, 10]
    assert checkpoints.newest((2, 6)) == 6
    checkpoints.delete_after(6)
    assert checkpoints.steps() == [2, 6]
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000002", "step-00000006"]


def test_a_checkpoint_of_another_training_is_refused(checkpoints: Checkpoints) -> None:
    other = Checkpoints(checkpoints.root, "other")
    shutil.copytree(checkpoints.folder, other.folder)
    with pytest.raises(IntegrityError, match="belongs to another training"):
        other.read(4)
    assert other.newest() is None
    shutil.copytree(checkpoints.at(4), checkpoints.at(9))  # it may not be taken for another step
    assert checkpoints.newest() == 4


HOLDER = """
import sys, time
from pathlib import Path
from remint.training.checkpoint import Checkpoints
with Checkpoints(Path(sys.argv[1]), "abc").held("the training of x"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_second_writer_is_refused_until_the_first_ends(checkpoints: Checkpoints) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(checkpoints.root)]
    with subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"the training of x, process {holder.pid} on "), checkpoints.held("me"):
            pass
        holder.kill()
    (checkpoints.folder / ".step-00000006.1.tmp").mkdir()
    with checkpoints.held("me"):
        assert [path.name for path in checkpoints.folder.glob(".*")] == []
        checkpoints.delete()
    with checkpoints.held("me again"):
        assert checkpoints.newest() is None


def test_a_full_disk_keeps_the_previous_checkpoint(checkpoints: Checkpoints) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="no room to write .*step-00000006"):
            checkpoints.write(6, {"big": torch.zeros(100_000)}, NOTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.newest() == 4
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000002", "step-00000004"]
