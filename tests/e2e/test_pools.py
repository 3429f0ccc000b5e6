"""Steps on other work pools: real workers of two pools, each with a folder of its own and no clone, and shared stores."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from remint.settings.params import read_params, write_params
from tests.support.pools import PIPELINE, Host, Installation
from tests.support.prefect_server import PrefectServer
from tests.support.stack import all_end_within

LONG = ("training.steps=3000", "training.checkpoint_every=50")  # half a minute
ENDLESS = ("training.steps=1000000", "training.checkpoint_every=50")
VERDICTS = ("Promoted", "Kept", "Refused")  # the run came to its end; how good the model is, is not the question
NOBODY = 420.0  # seconds: docs/how-to/pools.md promises 300, and the step needs some to stop


@pytest.fixture
def typed(template: Path, tmp_path: Path, prefect_server: str) -> Iterator[Installation]:
    made = Installation.make(template, tmp_path, prefect_server, train="gpu")
    try:
        yield made
    finally:
        made.stop()


def test_a_typed_run_trains_on_a_pool(typed: Installation, tmp_path: Path) -> None:
    """The short form of the tests below, with every mistake of a person before it."""
    team, gpu = typed.team, typed.host("gpu", "gpu")
    for resources, words in (
        ("{train: gqu}", "resources.train: no worker of remint has served a pool 'gqu' of this Prefect server (its pools: "),
        ("{trian: gpu}", "resources: unknown key 'trian': did you mean 'train'?"),
        ("{train: [gpu]}", "resources.train: expected the name of a work pool, or {pool: .., variables: {..}}, not ['gpu']"),
    ):
        said = team.remint("run", PIPELINE, "--set", f"resources={resources}", status=2).stderr
        assert f"params.yaml: pipelines.{PIPELINE}.{words}" in said and len(said.splitlines()) <= 2, said
    said = team.remint(
        "run", PIPELINE, "--set", "resources={default: cpu, train: cpu}", "--set", "training.steps=x", status=2
    ).stderr
    assert "training.steps" in said, "a step on the pool of the retraining needs no other worker"
    typed.wait_for(lambda: "started!" in gpu.log)
    (outcome,) = team.json("run", PIPELINE)
    assert outcome["decision"]["verdict"] == "promoted" and outcome["trained"]
    (job,) = gpu.home.jobs.glob("*/job.json")
    (step,) = [typed.request(f"/flow_runs/{json.loads(job.read_text())['flow_run']}")]
    assert (step["name"], step["state_name"], step["work_pool_name"]) == (f"train {PIPELINE}", "Completed", "gpu")
    assert not list((typed.folder / "remote/checkpoints").glob("*")), "the training is done"
    (again,) = team.json("run", PIPELINE)
    assert again["unchanged"] and not again["trained"] and len(list(gpu.home.jobs.glob("*"))) == 1


@pytest.mark.soak
def test_each_long_step_may_run_on_a_pool(typed: Installation) -> None:
    team, gpu = typed.team, typed.host("gpu", "gpu")
    content = read_params(team.folder)
    content["datasets"]["digits"]["split"] = {**content["datasets"]["digits"].get("split", {}), "calibration": 0.1}
    pipeline = content["pipelines"][PIPELINE]
    pipeline["evaluation"]["metrics"] = ["nll", "fd_domain"]
    pipeline["resources"] = dict.fromkeys(("features", "train", "calibrate", "evaluate"), "gpu")
    write_params(content, team.folder)
    team.sh("git commit -qam all")
    typed.wait_for(lambda: "started!" in gpu.log)
    (outcome,) = team.json("run", PIPELINE)
    assert outcome["decision"]["verdict"] == "promoted", outcome
    facts = [json.loads(path.read_text()) for path in sorted(gpu.home.jobs.glob("*/job.json"))]
    names = [typed.request(f"/flow_runs/{each['flow_run']}")["name"].partition(" ")[0] for each in facts]
    assert names == ["features", "train", "evaluate", "calibrate"]
    (again,) = team.json("run", PIPELINE)
    assert again["unchanged"] and len(list(gpu.home.jobs.glob("*"))) == 4


@pytest.mark.soak
def test_a_worker_with_another_ledger_says_so(typed: Installation) -> None:
    gpu = typed.host("gpu", "gpu", REMINT_LEDGER=f"sqlite:///{typed.folder}/another.db")
    typed.wait_for(lambda: "started!" in gpu.log)
    said = typed.team.remint("run", PIPELINE, status=1).stderr
    assert f"knows no retraining of {PIPELINE}: set REMINT_LEDGER there to that of the retraining" in said, said


@pytest.fixture(scope="module")
def installation(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("pools")
    server = PrefectServer(template / ".remint/prefect", folder / "prefect")
    made = Installation.make(template, folder, server.url, train="gpu", default="cpu")
    try:
        yield made
    finally:
        made.stop()
        server.stop()


@pytest.fixture
def deployed(installation: Installation) -> Installation:
    """The installation with one worker for each pool, deployed."""
    for name, host in list(installation.hosts.items()):
        if name not in ("cpu", "gpu") or host.process is None or host.process.poll() is not None:
            host.stop()
            installation.hosts.pop(name)
    for name in ("cpu", "gpu"):
        if name not in installation.hosts:
            installation.host(name, name)
    installation.wait_for(lambda: all("started!" in host.log for host in installation.hosts.values()))
    installation.team.json("deploy", "--branch", "main")
    return installation


def training(host: Host, installation: Installation) -> list[psutil.Process]:
    """Wait until a host trains and has a checkpoint. Return the processes of the step."""

    def found() -> list[psutil.Process]:
        return host.step_processes("train") if installation.checkpoints(host.home.path) else []

    processes: list[psutil.Process] = installation.wait_for(found)
    return processes


def events(installation: Installation, step: dict[str, Any], name: str) -> list[str]:
    return [line for line in installation.logs(step["id"]) if line.startswith(f'event {{"event": "{name}"')]


@pytest.mark.soak
def test_1_training_runs_on_one_worker_and_the_rest_on_another(deployed: Installation) -> None:
    (change,) = deployed.team.json("deploy", "--branch", "main")
    assert (change["action"], change["pool"], change["clones"]) == ("unchanged", "cpu", "main")
    run = deployed.begin()
    assert deployed.ended(run) == "Promoted", deployed.logs(run)
    (step,) = deployed.steps()
    assert (step["name"], step["state_name"], step["work_pool_name"]) == (f"train {PIPELINE}", "Completed", "gpu")
    (version,) = deployed.team.json("models", PIPELINE)
    assert version["aliases"] == ["champion"] and version["commit"] == deployed.team.sh("git rev-parse HEAD").strip()
    second = deployed.begin()
    assert deployed.ended(second) == "Unchanged" and len(deployed.steps()) == 1


@pytest.mark.soak
def test_the_step_of_a_killed_parent_goes_on_and_is_found(deployed: Installation) -> None:
    run, before = deployed.begin(*LONG, "training.seed=1"), len(deployed.steps())
    training(deployed.hosts["gpu"], deployed)
    (parent,) = deployed.hosts["cpu"].flows()
    parent.kill()
    assert deployed.ended(run, "Crashed") in VERDICTS, deployed.logs(run)
    (step,) = deployed.steps()[before:]
    assert step["run_count"] == 1 and len(events(deployed, step, "started")) == 1, "one training"


@pytest.mark.soak
def test_the_step_goes_on_while_the_worker_of_its_parent_is_stopped(deployed: Installation) -> None:
    run, before = deployed.begin(*LONG, "training.seed=11"), len(deployed.steps())
    training(deployed.hosts["gpu"], deployed)
    deployed.hosts["cpu"].stop()
    assert deployed.state(run)["name"] == "AwaitingRetry"
    deployed.hosts["cpu"].start()
    assert deployed.ended(run) in VERDICTS, deployed.logs(run)
    (step,) = deployed.steps()[before:]
    assert step["run_count"] == 1 and len(events(deployed, step, "started")) == 1, "one training"


@pytest.mark.soak
def test_a_cancelled_parent_cancels_its_step(deployed: Installation) -> None:
    run, before = deployed.begin(*ENDLESS, "training.seed=2"), len(deployed.steps())
    tree = training(deployed.hosts["gpu"], deployed)
    deployed.request(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert all_end_within(tree, 60.0)
    assert deployed.ended(run) == "Cancelled"
    (step,) = deployed.steps()[before:]
    assert deployed.ended(step["id"]) == "Cancelled"


@pytest.mark.soak
def test_a_typed_run_that_is_stopped_stops_its_step(deployed: Installation, tmp_path: Path) -> None:
    deployed.note_checkpoints()
    before = len(deployed.steps())
    overrides = [argument for each in (*ENDLESS, "training.seed=3") for argument in ("--set", each)]
    run = deployed.team.start("run", PIPELINE, *overrides, log=tmp_path / "log")
    tree = training(deployed.hosts["gpu"], deployed)
    run.send_signal(signal.SIGINT)
    assert all_end_within(tree, 60.0) and run.wait(60) == 1
    assert "interrupted" in (tmp_path / "log").read_text()
    (step,) = deployed.steps()[before:]
    assert deployed.ended(step["id"]) == "Cancelled"


@pytest.mark.soak
def test_a_killed_step_starts_again_from_its_checkpoint(deployed: Installation) -> None:
    run, before = deployed.begin(*LONG, "training.seed=4"), len(deployed.steps())
    tree = training(deployed.hosts["gpu"], deployed)
    tree[0].kill()
    assert all_end_within(tree)
    assert deployed.ended(run) in VERDICTS, deployed.logs(run)
    first, second = deployed.steps()[before:]
    assert (first["state_name"], second["state_name"]) == ("Crashed", "Completed")
    assert len(events(deployed, second, "resumed")) == 1
    (said,) = [line for line in deployed.logs(run) if "was lost on the pool gpu" in line]
    assert "it starts again from its last checkpoint, 1 of at most 5 times" in said


@pytest.mark.soak
def test_another_host_continues_the_step_of_a_lost_host(deployed: Installation) -> None:
    """Nobody reports the end of the first run: its host has lost its power. The checkpoint comes from the DVC remote."""
    run, before = deployed.begin(*LONG, "training.seed=5"), len(deployed.steps())
    training(deployed.hosts["gpu"], deployed)
    deployed.wait_for(lambda: deployed.checkpoints(deployed.folder / "remote"))
    deployed.hosts["gpu"].kill()
    deployed.host("other gpu", "gpu")
    assert deployed.ended(run, seconds=400.0) in VERDICTS, deployed.logs(run)
    first, second = deployed.steps()[before:]
    assert "its host is gone" in first["state"]["message"]
    assert len(events(deployed, second, "resumed")) == 1


@pytest.mark.soak
def test_a_step_goes_to_another_host_when_its_worker_is_stopped(deployed: Installation) -> None:
    run, before = deployed.begin(*LONG, "training.seed=6"), len(deployed.steps())
    training(deployed.hosts["gpu"], deployed)
    deployed.host("other gpu", "gpu")
    deployed.wait_for(lambda: "started!" in deployed.hosts["other gpu"].log)
    deployed.hosts["gpu"].stop()
    assert deployed.ended(run, seconds=400.0) in VERDICTS, deployed.logs(run)
    (step,) = deployed.steps()[before:]
    assert step["run_count"] == 2 and len(events(deployed, step, "resumed")) == 1


@pytest.mark.soak
def test_a_step_that_nobody_waits_for_stops(deployed: Installation) -> None:
    run, before = deployed.begin(*ENDLESS, "training.seed=7"), len(deployed.steps())
    tree = training(deployed.hosts["gpu"], deployed)
    killed = time.monotonic()
    deployed.hosts["cpu"].kill()
    assert all_end_within(tree, NOBODY) and time.monotonic() - killed > 200.0
    (step,) = deployed.steps()[before:]
    assert deployed.ended(step["id"]) == "Cancelled"
    deployed.request(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


@pytest.mark.soak
def test_a_pool_without_a_worker_is_named(deployed: Installation) -> None:
    deployed.hosts["gpu"].stop()
    run = deployed.begin("training.seed=8")
    wanted = "notice text=train waits for a worker of the pool gpu: none is online; remint worker --pool gpu starts one"
    deployed.wait_for(lambda: wanted in deployed.logs(run))
    deployed.host("other gpu", "gpu")
    assert deployed.ended(run) in VERDICTS, deployed.logs(run)


@pytest.mark.soak
def test_a_worker_with_another_remint_runs_the_code_of_the_commit(deployed: Installation) -> None:
    """The workers have this working tree installed. The commit's own training says something that it does not say."""
    train = deployed.team.folder / "pipelines/train.py"
    text = train.read_text()
    train.write_text(
        text.replace(
            "    here = Path.cwd()\n",
            "    from remint.runtime.events import emit\n\n    emit('of_commit')\n    here = Path.cwd()\n",
        )
    )
    deployed.team.sh("git commit -qam other && git push -q origin main")
    before = len(deployed.steps())
    assert deployed.ended(deployed.begin("training.seed=9")) in VERDICTS
    (step,) = deployed.steps()[before:]
    assert len(events(deployed, step, "of_commit")) == 1


@pytest.mark.soak
def test_uncommitted_work_travels_too(deployed: Installation) -> None:
    train = deployed.team.folder / "pipelines/train.py"
    train.write_text(train.read_text() + "\n# uncommitted\n")
    before = len(deployed.steps())
    (outcome,) = deployed.team.json("run", PIPELINE, "--set", "training.seed=10")
    assert outcome["decision"]["verdict"] != "promoted" and len(deployed.steps()) == before + 1
    subprocess.run(["git", "checkout", "-q", "."], cwd=deployed.team.folder, check=True)
