"""Checkpoints: exact, whole or not at all, and every damage found."""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from remint.errors import IntegrityError, RunError, StorageError
from remint.training.checkpoint import Checkpoints
from tests.training_cases import environment

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


def test_what_is_written_is_read_to_the_bit(checkpoints: Checkpoints) -> None:
    tensors, notes = checkpoints.read(4)
    assert notes == NOTES
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert tensors[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_the_last_two_are_kept(checkpoints: Checkpoints) -> None:
    checkpoints.write(1000, TENSORS, NOTES)
    assert checkpoints.steps() == [4, 1000]
    assert checkpoints.newest() == 1000


def test_every_flipped_bit_is_found_and_the_one_before_is_used(
    checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    whole = checkpoints.folder / "whole"
    shutil.copytree(checkpoints.at(4), whole)
    for path in sorted(whole.iterdir()):
        for _ in range(20):
            damaged = bytearray(path.read_bytes())
            damaged[choose.randrange(len(damaged))] ^= 1 << choose.randrange(8)
            (checkpoints.at(4) / path.name).write_bytes(damaged)
            assert checkpoints.newest() == 2
            assert not checkpoints.at(4).exists()
            shutil.copytree(whole, checkpoints.at(4))
    assert checkpoints.newest() == 4
    assert "damaged_checkpoint step=4" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tensors.safetensors", "notes.json", "manifest.json"])
def test_every_truncation_is_found(checkpoints: Checkpoints, name: str) -> None:
    path = checkpoints.at(4) / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(IntegrityError, match=name):
        checkpoints.read(4)
    assert checkpoints.newest() == 2
    (checkpoints.at(2) / name).unlink()
    assert checkpoints.newest() is None


def test_another_trainings_checkpoint_is_refused(checkpoints: Checkpoints) -> None:
    other = Checkpoints(checkpoints.root, "other")
    shutil.copytree(checkpoints.folder, other.folder)
    with pytest.raises(IntegrityError, match="belongs to another training"):
        other.read(4)
    assert other.newest() is None
    shutil.copytree(checkpoints.at(4), checkpoints.at(9))  # nor may it pass for another step
    assert checkpoints.newest() == 4


HOLDER = """
import sys, time
from pathlib import Path
from remint.training.checkpoint import Checkpoints
with Checkpoints(Path(sys.argv[1]), "abc").held("the training of x"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_refused_until_the_first_is_gone(checkpoints: Checkpoints) -> None:
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


def test_a_full_disk_leaves_the_checkpoint_before(checkpoints: Checkpoints) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="no room to write .*step-00000006"):
            checkpoints.write(6, {"big": torch.zeros(100_000)}, NOTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.newest() == 4
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000002", "step-00000004"]
