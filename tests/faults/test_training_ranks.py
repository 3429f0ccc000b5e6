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

import numpy as np
import psutil
import pytest

from remint.errors import DataError, Interrupted, StepError
from remint.records import TrainedModel
from remint.training.launch import run_ranks
from tests import training_cases as cases

NO_DROPOUT = {"dropout": False}  # which each rank draws for itself


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
    """Every family trained by two processes."""
    home = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", cases.environment()["PYTHONPATH"])
        train_ranks(folder, home, 2, ",".join(cases.FAMILIES), **NO_DROPOUT)
    return home


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_one_and_two_processes_agree_on_the_curve(family: str, folder: Path, two: Path, tmp_path: Path) -> None:
    one = cases.run(cases.recipe(family, **NO_DROPOUT), cases.load(folder), tmp_path)
    trained = TrainedModel.read(two / family / "out/training.json")
    assert (one.world_size, trained.world_size, trained.fingerprint["world_size"]) == (1, 2, 2)
    curves = [np.genfromtxt(home / "out/curve.csv", delimiter=",", names=True) for home in (tmp_path, two / family)]
    assert curves[0].dtype == curves[1].dtype
    for name in curves[0].dtype.names:
        np.testing.assert_allclose(curves[0][name], curves[1][name], rtol=2e-5, err_msg=name)


def test_a_killed_rank_ends_the_run_which_resumes_to_the_same_bytes(folder: Path, two: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="one of 2 training processes failed"):
        train_ranks(folder, tmp_path, 2, "gan", "die=8", "rank=1", **NO_DROPOUT)
    assert not (tmp_path / "gan/out").exists()
    assert sorted(path.name for path in (tmp_path / "gan/checkpoints").glob("*/step-*")) == ["step-00000003", "step-00000006"]
    train_ranks(folder, tmp_path, 2, "gan", **NO_DROPOUT)
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
        ("ValueError('a bug')", StepError, r"^one of 2 training processes failed \(status 1\): ValueError: a bug$"),
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
