"""`remint serve` as a process: it answers, follows a person's decision, and a signal drains it."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.support.ports import free_port
from tests.support.team import Team


@pytest.fixture
def serving(trained_team: Team) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    program, environment = trained_team.programs(new=True)
    command = [program, "serve", "digits-vae", "digits-flow", "--port", str(port), "--every", "0.2"]
    process = subprocess.Popen(command, cwd=trained_team.folder, env=environment, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"{address}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        yield address, process
    finally:
        process.kill()
        process.wait()


def test_a_taken_port_is_told_before_a_model_is_loaded(trained_team: Team) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        done = trained_team.remint("serve", "digits-vae", "--port", str(port), status=2, new=True)
    line = f"error: cannot listen at 127.0.0.1, port {port}: Address already in use. Give another --host or --port\n"
    assert done.stderr == line and done.stdout == ""


def test_a_server_answers_and_drains(trained_team: Team, serving: tuple[str, subprocess.Popen[str]], tmp_path: object) -> None:
    address, process = serving
    trained_team.remint("sample", "digits-vae", "-n", "5", "--seed", "3", "-o", f"{tmp_path}/x.npy")
    said = httpx.post(f"{address}/v1/models/digits-vae:sample", json={"count": 5, "seed": 3}).json()
    assert np.array_equal(said["values"], np.load(f"{tmp_path}/x.npy")) and said["version"] == 1
    refused = httpx.post(f"{address}/v1/models/digits-vae:encode", json={"x": [[[1]]]})
    assert refused.status_code == 422 and "\n" not in refused.json()["detail"]
    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(httpx.post, f"{address}/v1/models/digits-flow:sample", json={"count": 3000, "seed": seed}, timeout=120)
            for seed in range(3)
        ]
        while not any('remint_waiting{model="digits-flow"} 0.0' not in httpx.get(f"{address}/metrics").text for _ in range(50)):
            assert not all(each.done() for each in asked)
        process.send_signal(signal.SIGTERM)
        answers = [each.result() for each in asked]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert process.wait(60) == 128 + signal.SIGTERM
