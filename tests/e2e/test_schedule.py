"""A schedule fires: the real local stack, a deployment at an interval of seconds, a flow run that ends in a version."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from remint import config
from tests.e2e.team import Team


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_a_schedule_fires_and_ends_in_a_version(team: Team, tmp_path: Path) -> None:
    content = config.read(team.folder)
    content["pipelines"]["digits-flow"]["schedule"] = {"interval": 10}
    config.write(content, team.folder)
    team.sh("git commit -qam 'every ten seconds'")
    prefect = free_port()
    stack = team.start("up", log=tmp_path / "log", REMINT_PREFECT_PORT=prefect, REMINT_MLFLOW_PORT=free_port())
    try:
        deadline = time.monotonic() + 240
        done: list[Any] = []
        while not done and time.monotonic() < deadline:
            assert stack.poll() is None, (tmp_path / "log").read_text()
            time.sleep(1)
            try:
                runs = post(f"http://127.0.0.1:{prefect}/api/flow_runs/filter", {})
            except OSError:
                continue
            done = [run for run in runs if run["auto_scheduled"] and run["state_type"] == "COMPLETED"]
        assert done, (tmp_path / "log").read_text()[-6000:]
        assert done[0]["parameters"]["pipeline"] == "digits-flow" and done[0]["parameters"]["branch"] == "main"
        (version,) = team.json("models", "digits-flow")
        assert version["aliases"] == ["champion"] and version["commit"] == team.sh("git rev-parse HEAD").strip()
        deployed = team.json("deploy")
        assert [entry["pipeline"] for entry in deployed] == ["digits-flow"]
    finally:
        children = psutil.Process(stack.pid).children(recursive=True)
        stack.send_signal(signal.SIGINT)
        stack.wait(timeout=60)
        _, alive = psutil.wait_procs(children, timeout=30)
        for child in alive:
            child.kill()
    assert not alive
    assert not (team.folder / ".remint/stack.json").exists()
