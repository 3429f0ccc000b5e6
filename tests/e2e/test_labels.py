"""Name and final state of a retraining's flow run on a real Prefect server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Pending, Scheduled

from flows import labels
from remint.promotion.outcome import Outcome, Verdict
from tests.support.retraining_cases import OUTCOME

FLOW = f"""
from prefect import flow
from flows import labels
from remint.promotion.outcome import Outcome

@flow(name="night", flow_run_name=labels.run_name, persist_result=False)
def night(pipeline: str):
    return labels.completed(Outcome.model_validate({OUTCOME.to_json()!r}))
"""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        yield found


def make_outcome(verdict: str, *, unchanged: bool = False, champion: int | None = 3) -> Outcome:
    decision = Verdict(verdict=verdict, reasons=(), rules=())
    return OUTCOME.model_copy(update={"decision": decision, "unchanged": unchanged, "champion": champion})


def run_to_end(client: SyncPrefectClient, outcome: Outcome, *, cancelled: bool = False) -> FlowRun:
    """Run a flow that ends with this outcome, check that the caller gets it, and return the flow run."""
    ids = []

    @flow(name="labelled", flow_run_name=labels.run_name, persist_result=False)
    def labelled(pipeline: str) -> Any:
        ids.append(flow_run.id)
        if cancelled:
            client.set_flow_run_state(flow_run.id, Cancelling(), force=True)
        return labels.completed(outcome)

    assert labelled("m") == outcome
    return client.read_flow_run(ids[0])


@pytest.mark.parametrize(
    ("outcome", "state", "message"),
    [
        (make_outcome("promoted", champion=4), "Promoted", "m/4: promoted; champion: m/4"),
        (make_outcome("kept"), "Kept", "m/4: kept; champion: m/3"),
        (make_outcome("refused", champion=None), "Refused", "m/4: refused; no champion"),
        (make_outcome("awaiting_approval"), "AwaitingApproval", "m/4: awaiting_approval; champion: m/3"),
        (make_outcome("awaiting_shadow"), "AwaitingShadow", "m/4: awaiting_shadow; champion: m/3"),
        (make_outcome("promoted", unchanged=True, champion=4), "Unchanged", "m/4: promoted; champion: m/4"),
        (make_outcome("rolled_back", unchanged=True), "Unchanged", "m/4: rolled_back; champion: m/3"),
    ],
)
def test_a_flow_run_state_is_named_by_the_verdict(client: SyncPrefectClient, outcome: Outcome, state: str, message: str) -> None:
    run = run_to_end(client, outcome)
    assert run.state is not None
    assert (run.state_name, run.state.type.value, run.state.message) == (state, "COMPLETED", message)
    assert run.expected_start_time is not None
    assert run.name == f"m {run.expected_start_time.astimezone():%Y-%m-%d}"
    assert abs((run.expected_start_time - datetime.now(UTC)).total_seconds()) < 600


def test_a_run_cancelled_at_its_end_still_returns_its_result(client: SyncPrefectClient) -> None:
    assert run_to_end(client, make_outcome("kept"), cancelled=True).state_name == "Cancelling"


@pytest.mark.parametrize(("zone", "day"), [("America/New_York", "2024-02-29"), ("Europe/Berlin", "2024-03-01")])
def test_a_scheduled_run_is_named_by_its_due_day(
    client: SyncPrefectClient, prefect_server: str, tmp_path: Path, zone: str, day: str
) -> None:
    (tmp_path / "night.py").write_text(FLOW)
    deployment = client.create_deployment(client.create_flow_from_name("night"), f"{tmp_path.name}-{day}")
    due = Scheduled(scheduled_time=datetime(2024, 3, 1, 2, 0, tzinfo=UTC))
    run = client.create_flow_run_from_deployment(deployment, parameters={"pipeline": "digits-vae"}, state=due).id
    client.set_flow_run_state(run, Pending(), force=True)
    environment = {
        **os.environ,
        "TZ": zone,
        "PREFECT_API_URL": prefect_server,
        "PREFECT__FLOW_RUN_ID": str(run),
        "PREFECT__FLOW_ENTRYPOINT": f"{tmp_path}/night.py:night",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", "flows.server.engine"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    after = client.read_flow_run(run)
    assert (after.name, after.state_name, after.state_type) == (f"digits-vae {day}", "Kept", "COMPLETED")
