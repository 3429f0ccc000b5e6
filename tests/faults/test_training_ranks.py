"""Several processes under a real torchrun: they agree with one, resume to the bit, and never outlive their parent."""

from __future__ import annotations

import csv
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
from remint.training.checkpoint import Checkpoints
from tests.support import training_cases as cases
from tests.support.processes import command_line
from tests.support.trials import Trials

# In float64 the order of a sum is far below 1e-10; but Adam divides the rounding of a gradient that is 0 (of the bias of a critic
# of which only differences matter) by its epsilon of 1e-8. No number of ranks divides the 13 examples of a batch.
EXACT = {"precision": "fp64", "steps": 20, "learning_rate": 2e-4, "batch_size": 13}


@pytest.fixture(autouse=True)
def python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", cases.environment()["PYTHONPATH"])


def train_ranks(folder: Path, home: Path, ranks: int, families: str, *options: str, **training: Any) -> None:
    settings = json.dumps(training | {"home": str(home), "devices": ranks})
    run_ranks([cases.__file__, str(folder), families, settings, *options], ranks, threads=1)


@pytest.fixture(scope="module")
def two_processes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home with every case trained by two processes."""
    home = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", cases.environment()["PYTHONPATH"])
        train_ranks(folder, home, 2, ",".join(cases.MODELS), "keep", **EXACT)
    return home


@pytest.fixture(scope="module")
def one_process(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home with every case trained by this process."""
    home = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Checkpoints, "delete", lambda _: None)
        for case in cases.MODELS:
            cases.train_into(cases.recipe(case, **EXACT), cases.load(folder), home / case)
    return home


def last_state(home: Path) -> dict[str, Tensor]:
    """Return every tensor of the last checkpoint: of model, averages, phases and optimizers."""
    (file,) = (home / "checkpoints").glob("*/step-00000020/tensors.safetensors")
    return {name: tensor for name, tensor in load_file(file).items() if name != "losses"}  # losses differ between ranks


def assert_same_training(home: Path, other: Path) -> None:
    ours, theirs = last_state(home), last_state(other)
    assert ours.keys() == theirs.keys()
    assert torch.float32 not in {tensor.dtype for name, tensor in ours.items() if name.startswith(("model.", "phase."))}
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0.0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", cases.MODELS)
def test_one_and_two_processes_train_the_same_parameters(case: str, one_process: Path, two_processes: Path) -> None:
    assert_same_training(one_process / case, two_processes / case)
    trained = TrainedModel.read(two_processes / case / "out/training.json")
    assert (trained.world_size, trained.fingerprint["world_size"]) == (2, 2)
    curves = [(home / case / "out/curve.csv").read_text().splitlines() for home in (one_process, two_processes)]
    assert curves[0][0] == curves[1][0]
    for ours, theirs in zip(*curves, strict=True):
        if ours is not curves[0][0]:
            assert [float(x) for x in ours.split(",")] == pytest.approx([float(x) for x in theirs.split(",")], rel=1e-9, abs=1e-9)


@pytest.mark.soak
def test_one_and_four_processes_train_the_same_parameters(folder: Path, one_process: Path, tmp_path: Path) -> None:
    train_ranks(folder, tmp_path, 4, ",".join(cases.MODELS), "keep", "anywhere", **EXACT)
    for case in cases.MODELS:
        assert_same_training(one_process / case, tmp_path / case)


def test_a_training_goes_on_with_another_number_of_processes(folder: Path, one_process: Path, tmp_path: Path) -> None:
    """Stopped in two processes after 8 steps, then in three, then resumed in one: the number is in no key."""
    for ranks, steps in ((2, 7), (3, 4)):
        with pytest.raises(StepError, match="interrupted after step"):
            train_ranks(folder, tmp_path, ranks, "vae-conditional", f"stop={steps}", "rank=1", "anywhere", **EXACT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Checkpoints, "delete", lambda _: None)
        trained = cases.train_into(cases.recipe("vae-conditional", **EXACT), cases.load(folder), tmp_path / "vae-conditional")
    assert_same_training(one_process / "vae-conditional", tmp_path / "vae-conditional")
    assert [each["world_size"] for each in trained.fingerprint["earlier"]] == [2, 3] and trained.world_size == 1


@pytest.mark.soak
@pytest.mark.case(2)
def test_killed_ranks_cost_at_most_a_checkpoint_interval_each(
    trials: Trials, folder: Path, two_processes: Path, tmp_path: Path
) -> None:
    """In a soak each run is killed repeatedly until it completes: about five times, a hundred in total."""
    for trial in trials(short=1, full=20):
        family = cases.FAMILIES[(trial.number + 1) % len(cases.FAMILIES)]
        home, done, kills = tmp_path / str(trial.number), 0, 0
        while kills == 0 or trials.soak:
            rank, steps = trial.random.randrange(2), trial.random.randrange(5 if trials.soak else 18)
            if done + steps >= 20:
                break
            with pytest.raises(StepError, match="one of 2 processes failed"):
                train_ranks(folder, home, 2, family, f"die={steps}", f"rank={rank}", **EXACT)
            (kept,) = (home / family / "checkpoints").iterdir()
            newest = Checkpoints(kept.parent, kept.name).newest() or 0
            assert 0 <= done + steps - newest <= 3, "a checkpoint is written every three steps"
            trial.note(kills=1, steps_lost=done + steps - newest)
            done, kills = newest, kills + 1
        assert not (home / family / "out").exists()
        train_ranks(folder, home, 2, family, **EXACT)
        assert cases.file_contents(home / family) == cases.file_contents(two_processes / family)
        trial.note(different=0)


@pytest.mark.soak
@pytest.mark.case(4)
def test_three_and_four_ranks_resume_to_the_same_bytes(trials: Trials, folder: Path, tmp_path: Path) -> None:
    """Stopped after each step by a signal to one rank. This rank has one infinite gradient and one infinite loss: all ranks skip them."""
    for trial in trials(short=1, full=10):
        ranks, family = 3 + trial.number % 2, cases.FAMILIES[(trial.number // 2 + 1) % len(cases.FAMILIES)]
        first, home = 1 if trials.soak else 28, tmp_path / str(trial.number)
        options = ("anywhere", f"every={first}", f"rank={ranks - 1}", "spoil=9")
        train_ranks(folder, home, ranks, family, *options, steps=30)
        for step in range(first, 30):
            assert cases.file_contents(home / f"{family}-{step}") == cases.file_contents(home / f"{family}-whole")
        *_, last = csv.DictReader((home / f"{family}-whole/out/curve.csv").open())
        assert last["skipped"] == "2"
        trial.note(resumes=30 - first, different=0)


@pytest.mark.soak
@pytest.mark.case(4)
def test_stock_ddp_does_not_resume_to_the_same_bytes(trials: Trials, folder: Path, tmp_path: Path) -> None:
    """Its all-reduce sums in the order of buckets, which are rebuilt after the first step of every process."""
    for trial in trials(short=1, full=2):
        ranks, home = 3 + trial.number, tmp_path / str(trial.number)
        train_ranks(folder, home, ranks, "gan", "anywhere", "every=20", f"rank={ranks - 1}", "stock", steps=30)
        whole = cases.file_contents(home / "gan-whole")
        different = sum(cases.file_contents(home / f"gan-{step}") != whole for step in range(20, 30))
        assert different > 0
        trial.note(resumes=10, different=different)


@pytest.mark.soak
@pytest.mark.case(8)
def test_a_stopped_rank_is_found_and_all_go_on_from_the_checkpoint(
    trials: Trials, folder: Path, two_processes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trial in trials(short=1, full=10):
        rank, step, home = trial.random.randrange(2), trial.random.randrange(1, 20), tmp_path / str(trial.number)
        home.mkdir()
        monkeypatch.setenv("REMINT_EVENTS", str(home / "events"))
        train_ranks(folder, home, 2, "gan", f"freeze={step}", f"rank={rank}", **EXACT)
        (restarted,) = [event for event in map(json.loads, (home / "events").open()) if event["event"] == "restarted"]
        seconds = restarted["at"] - (home / "frozen").stat().st_mtime
        assert 15 < seconds < 60
        assert cases.file_contents(home / "gan") == cases.file_contents(two_processes / "gan")
        trial.note(different=0, seconds=round(seconds, 1))


@pytest.mark.soak
@pytest.mark.case(7)
def test_under_torchrun_too_whoever_gets_the_signal(trials: Trials, folder: Path, tmp_path: Path) -> None:
    """Receivers: torchrun, one rank, or all ranks. Each time there is one checkpoint, the marker, and no process."""
    for trial in trials(short=3, full=9):
        receiver, home = ("torchrun", "one", "all")[trial.number % 3], tmp_path / str(trial.number)
        settings = json.dumps({"home": str(home), "devices": 2, "steps": 10**6, "validate_every": 10})
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        environment = cases.environment() | {"REMINT_EVENTS": str(home / "events"), "OMP_NUM_THREADS": "1"}
        home.mkdir()
        with subprocess.Popen([*torchrun, cases.__file__, str(folder), "vae", settings], env=environment) as parent:
            wait_until_training(home / "events")
            ranks = [each for each in descendants(parent) if "training_cases" in " ".join(command_line(each))]
            assert len(ranks) == 2
            targets = {"torchrun": [parent], "one": [ranks[trial.random.randrange(2)]], "all": ranks}[receiver]
            for process in targets:
                process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert parent.wait(timeout=30) != 0
            _, alive = psutil.wait_procs(ranks, timeout=5)
            assert alive == []
        (kept,) = (home / "vae/checkpoints").iterdir()
        marker = json.loads((kept / "PREEMPTED").read_text())
        assert Checkpoints(kept.parent, kept.name).newest() == marker["step"]
        trial.note(seconds=round(time.monotonic() - began, 1), different=0)


def wait_until_training(events: Path) -> None:
    deadline = time.monotonic() + 60
    while not (events.exists() and "metrics" in events.read_text()):
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.1)


def descendants(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(parent.pid).children(recursive=True)


@pytest.mark.parametrize("sign", [pytest.param(signal.SIGINT, marks=pytest.mark.soak), signal.SIGKILL])
def test_no_rank_outlives_its_parent(sign: signal.Signals, folder: Path, tmp_path: Path) -> None:
    events = tmp_path / "events"
    settings = {"home": str(tmp_path), "devices": 2, "steps": 10**6, "validate_every": 10}
    command = [sys.executable, cases.__file__, str(folder), "gan", json.dumps(settings), "anywhere"]
    environment = cases.environment() | {"REMINT_EVENTS": str(events)}
    with subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE) as parent:
        try:
            wait_until_training(events)
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
        stderr = parent.stderr.read() if parent.stderr else ""
    (checkpoint, *_) = (tmp_path / "gan/checkpoints").glob("*/step-*")
    assert (checkpoint / "manifest.json").exists()
    if sign == signal.SIGINT:
        assert parent.returncode == 1
        assert f"{Interrupted.__name__}: interrupted" in stderr
        assert '"event": "interrupted"' in events.read_text()


RANK = """
import os
from remint.runtime import events
from remint.errors import DataError

def main(key):
    if os.environ["RANK"] == "1":
        raise {error}
    import time; time.sleep(60)

events.run_step(main)
"""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("DataError('the data of ' + key + ' are broken')", DataError, "^the data of tiny are broken$"),
        ("ValueError('a bug')", StepError, r"^one of 2 processes failed \(status 1\): ValueError: a bug$"),
    ],
)
def test_the_error_of_a_rank_reaches_its_parent(
    error: str, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(error=error))
    before = dict(os.environ)
    with pytest.raises(kind, match=message):
        run_ranks([str(script), "tiny"], 2, threads=1)
    assert dict(os.environ) == before
