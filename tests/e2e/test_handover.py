"""SIGTERM to a flow's process under Prefect's engine: a deployed run is handed back, a cancelled one is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Pending

from flows.server import stopping
from tests.support.processes import wait_for

FLOW = """
import time
from pathlib import Path
from prefect import flow
from flows.server.stopping import preemptible

@flow(name="sleepy", persist_result=False)
def sleepy():
    with preemptible():
        Path("begun").write_text("1")
        time.sleep(600)
"""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        yield found


@pytest.mark.parametrize(
    ("deployed", "cancelled", "status", "state", "message"),
    [
        (True, False, 0, "AwaitingRetry", stopping.STOPPED),
        (True, True, -signal.SIGTERM, "Crashed", ""),  # no worker here makes it Cancelled, but it does not resume
        (False, False, 0, "Failed", "run the same command again"),
    ],
)
def test_sigterm_ends_a_flow_run_in_the_right_state(
    client: SyncPrefectClient,
    prefect_server: str,
    tmp_path: Path,
    *,
    deployed: bool,
    cancelled: bool,
    status: int,
    state: str,
    message: str,
) -> None:
    (tmp_path / "sleepy.py").write_text(FLOW)
    flow = client.create_flow_from_name("sleepy")
    if deployed:
        run = client.create_flow_run_from_deployment(client.create_deployment(flow, tmp_path.name)).id
    else:
        answer = client._client.post("/flow_runs/", json={"flow_id": str(flow)})
        run = answer.json()["id"]
    client.set_flow_run_state(run, Pending(), force=True)
    environment = {
        **os.environ,
        "PREFECT_API_URL": prefect_server,
        "PREFECT__FLOW_RUN_ID": str(run),
        "PREFECT__FLOW_ENTRYPOINT": f"{tmp_path}/sleepy.py:sleepy",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server.engine"], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    wait_for(tmp_path / "begun", 60.0)
    if cancelled:
        client.set_flow_run_state(run, Cancelling(), force=True)
    process.terminate()
    assert process.wait(timeout=60) == status, (tmp_path / "log").read_text()
    after = client.read_flow_run(run).state
    assert after is not None and after.name == state and message in (after.message or ""), after
