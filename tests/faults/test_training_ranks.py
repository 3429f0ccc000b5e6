"""N processes under a real torchrun: they agree with one, resume to the bit, and never outlive who started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from remint.distributed.launch import run_ranks
from remint.errors import DataError, Interrupted, StepError
from remint.records import TrainedModel
from remint.training import train
from tests import training_cases as cases

# Each rank draws its own dropout. In float64 the order of a sum is far below 1e-10; but Adam divides the rounding of a
# gradient that is 0 (of the bias of a critic of which only differences matter) by its epsilon of 1e-8.
EXACT = {"dropout": False, "precision": "fp64", "steps": 20, "learning_rate": 2e-4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    cases.prepare(made)
    return made


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", cases.environment()["PYTHONPATH"])


def train_ranks(folder: Path, home: Path, ranks: int, families: str, *options: str, **training: Any) -> None:
    settings = json.dumps(training | {"home": str(home), "devices": ranks})
    run_ranks([cases.__file__, str(folder), families, settings, *options], ranks, threads=1)


@pytest.fixture(scope="module")
def two(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained by two processes."""
    home = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", cases.environment()["PYTHONPATH"])
        train_ranks(folder, home, 2, ",".join(cases.MODELS), "keep", **EXACT)
    return home


@pytest.fixture(scope="module")
def one(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained by this process."""
    home = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Checkpoints, "delete", lambda _: None)
        for case in cases.MODELS:
            cases.run(cases.recipe(case, **EXACT), cases.load(folder), home / case)
    return home


def last_state(home: Path) -> dict[str, Tensor]:
    """Every tensor of the last checkpoint: weights and averages of the model, weights of every phase, every optimizer."""
    (file,) = (home / "checkpoints").glob("*/step-00000020/tensors.safetensors")
    return {name: tensor for name, tensor in load_file(file).items() if name != "losses"}  # of which each rank has its own


def assert_one_training(home: Path, other: Path) -> None:
    ours, theirs = last_state(home), last_state(other)
    assert ours.keys() == theirs.keys()
    assert torch.float32 not in {tensor.dtype for name, tensor in ours.items() if name.startswith(("model.", "phase."))}
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0.0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", cases.MODELS)
def test_one_and_two_processes_train_the_same_parameters(case: str, one: Path, two: Path) -> None:
    assert_one_training(one / case, two / case)
    trained = TrainedModel.read(two / case / "out/training.json")
    assert (trained.world_size, trained.fingerprint["world_size"]) == (2, 2)
    curves = [(home / case / "out/curve.csv").read_text().splitlines() for home in (one, two)]
    assert curves[0][0] == curves[1][0]
    for ours, theirs in zip(*curves, strict=True):
        if ours is not curves[0][0]:
            assert [float(x) for x in ours.split(",")] == pytest.approx([float(x) for x in theirs.split(",")], rel=1e-9, abs=1e-9)


@pytest.mark.soak
def test_one_and_four_processes_train_the_same_parameters(folder: Path, one: Path, tmp_path: Path) -> None:
    train_ranks(folder, tmp_path, 4, ",".join(cases.MODELS), "keep", "anywhere", **EXACT)
    for case in cases.MODELS:
        assert_one_training(one / case, tmp_path / case)


def test_a_killed_rank_ends_the_run_which_resumes_to_the_same_bytes(folder: Path, two: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="one of 2 processes failed"):
        train_ranks(folder, tmp_path, 2, "gan", "die=8", "rank=1", **EXACT)
    assert not (tmp_path / "gan/out").exists()
    assert sorted(path.name for path in (tmp_path / "gan/checkpoints").glob("*/step-*")) == ["step-00000003", "step-00000006"]
    train_ranks(folder, tmp_path, 2, "gan", **EXACT)
    assert cases.contents(tmp_path / "gan") == cases.contents(two / "gan")


def test_three_ranks_resume_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Where DDP's own all-reduce does not: its buckets are rebuilt after the first step of every process."""
    train_ranks(folder, tmp_path, 3, "gan,vae", "anywhere", "stop=4", "rank=2", "twice")
    for family in ("gan", "vae"):
        assert cases.contents(tmp_path / family) == cases.contents(tmp_path / f"{family}-whole")


def descendants(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(parent.pid).children(recursive=True)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_no_rank_outlives_who_started_it(sign: signal.Signals, folder: Path, tmp_path: Path) -> None:
    events = tmp_path / "events"
    settings = {"home": str(tmp_path), "devices": 2, "steps": 10**6, "validate_every": 10}
    command = [sys.executable, cases.__file__, str(folder), "gan", json.dumps(settings), "anywhere"]
    environment = cases.environment() | {"REMINT_EVENTS": str(events)}
    with subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE) as parent:
        try:
            deadline = time.monotonic() + 60
            while not (events.exists() and "metrics" in events.read_text()) and time.monotonic() < deadline:
                time.sleep(0.1)
            started = descendants(parent)
            assert len(started) >= 3  # torchrun and two ranks
            parent.send_signal(sign)
            _, alive = psutil.wait_procs(started, timeout=30)
            parent.wait(timeout=30)
        finally:
            for process in descendants(parent) if parent.poll() is None else ():
                process.kill()
            parent.kill()
        assert alive == []
        said = parent.stderr.read() if parent.stderr else ""
    (checkpoint, *_) = (tmp_path / "gan/checkpoints").glob("*/step-*")
    assert (checkpoint / "manifest.json").exists()
    if sign == signal.SIGINT:
        assert parent.returncode == 1
        assert f"{Interrupted.__name__}: interrupted" in said
        assert '"event": "interrupted"' in events.read_text()


RANK = """
import os
from remint import step
from remint.errors import DataError

def main(key):
    if os.environ["RANK"] == "1":
        raise {error}
    import time; time.sleep(60)

step.run(main)
"""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("DataError('the data of ' + key + ' are broken')", DataError, "^the data of tiny are broken$"),
        ("ValueError('a bug')", StepError, r"^one of 2 processes failed \(status 1\): ValueError: a bug$"),
    ],
)
def test_what_a_rank_raises_arrives(
    error: str, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(error=error))
    before = dict(os.environ)
    with pytest.raises(kind, match=message):
        run_ranks([str(script), "tiny"], 2, threads=1)
    assert dict(os.environ) == before
