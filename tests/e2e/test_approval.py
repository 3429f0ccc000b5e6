"""Approval form in Prefect: a real server, a real worker, runs that are suspended until a person answers. Nothing is trained."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from remint.promotion.decision import Decision, RuleResult
from remint.records import MetricValue
from remint.runtime.home import Home
from remint.settings.params import read_params, write_params
from remint.stores.ledger.row import LedgerRow
from remint.stores.open import open_ledger, open_tracking
from tests.support import promotion_cases as cases
from tests.support.prefect_server import request_json
from tests.support.promotion_cases import MODEL
from tests.support.team import Team

PROGRAM = """
import json, sys
from remint.promotion.decision import Decision
from remint.stores.ledger.row import LedgerRow
from flows import approval
from flows import artifacts
from prefect.events.worker import EventsWorker
for decision, row in json.load(sys.stdin):
    artifacts.tell_awaiting(Decision.model_validate(decision))
    print(approval.ask(LedgerRow.model_validate(row)), approval.ask(LedgerRow.model_validate(row)))
EventsWorker.drain_all(timeout=10)
"""


class PrefectApi:
    """Requests that a browser sends to the server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return request_json(f"{self.url}/{path}", body)

    def get(self, path: str) -> Any:
        return request_json(f"{self.url}/{path}")

    def wait_for_state(self, name: str, *states: str) -> Any:
        """Wait until the flow run of this name is in one of these states, and return it."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            (run,) = self.post("flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})
            if run["state_name"] in states:
                return run
            time.sleep(0.25)
        raise AssertionError(f"{name} is {run['state']}")

    def events(self, name: str, count: int, since: datetime) -> dict[str, Any]:
        """Return the events of this name by version. The server stores them after some seconds.

        Events before ``since`` are of other tests, whose versions can have the same numbers.
        """
        deadline, found = time.monotonic() + 120, []
        query = {"event": {"name": [name]}, "occurred": {"since": since.isoformat()}}
        while len(found) < count and time.monotonic() < deadline:
            found = self.post("events/filter", {"filter": query})["events"]
            time.sleep(0.25)
        return {event["payload"]["version"]: event for event in found}


def decision(version: int) -> Decision:
    sides = [MetricValue(name="nll", value=value, low=value - 0.1, high=value + 0.1, n=9, seed=0) for value in (1.8, 1.9)]
    better = RuleResult(
        rule="improve",
        passed=True,
        reason="better",
        metric="nll",
        challenger=sides[0],
        champion=sides[1],
        difference=(0.1, 0.05, 0.15),
    )
    return Decision(
        model=MODEL,
        verdict="awaiting_approval",
        challenger=version,
        champion=1,
        rules=(better,),
        reasons=("better",),
        evidence={},
    )


@pytest.mark.soak
def test_an_approval_in_prefect_promotes_and_a_late_answer_fails(
    team: Team, registered: Home, prefect_server: str, tmp_path: Path
) -> None:
    home, began = Home(team.folder, team.folder / ".remint"), datetime.now(UTC)
    cases.copy_home(registered, home.path)
    content = read_params(team.folder)
    content["pipelines"][MODEL]["promotion"]["approval"] = "manual"
    write_params(content, team.folder)
    team.sh("git commit -qam 'a person has the last word'")
    team.api = prefect_server
    assert [entry["deployment"] for entry in team.json("deploy")] == [f"approve/{MODEL}"]

    pending: list[tuple[Decision, LedgerRow]] = []
    cases.record_decision(home, "promoted", 1)
    for version in (2, 3):
        pending.append((decision(version), cases.record_decision(home, "awaiting_approval", version)))
        home.report(MODEL, version).mkdir(parents=True)
        pending[-1][0].write(home.report(MODEL, version) / "decision.json")
    environment = {
        **team.environment(),
        "PREFECT_API_URL": prefect_server,
        "PREFECT_HOME": str(tmp_path),
        "PYTHONPATH": f"{team.folder}/src:{team.folder}",
    }
    stdin = json.dumps([[part.to_json() for part in each] for each in pending])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=team.folder, env=environment, input=stdin, text=True, capture_output=True, check=True
    )
    second, third = (line.split() for line in done.stdout.splitlines())
    assert second[0] == second[1] and third[0] == third[1], "the same row is asked about once"

    prefect = PrefectApi(prefect_server)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "remint", "--type", "process"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            command, cwd=team.folder, env={**environment, "PREFECT_WORKER_QUERY_SECONDS": "0.5"}, stdout=log, stderr=log
        )
    try:
        for name in (second[0], third[0]):
            run = prefect.wait_for_state(name, "Suspended", "Failed", "Crashed")
            assert run["state_name"] == "Suspended", (tmp_path / "log").read_text()
        keys = prefect.wait_for_state(second[0], "Suspended")["state"]["state_details"]["run_input_keyset"]
        question = prefect.get(f"flow_runs/{prefect.wait_for_state(second[0], 'Suspended')['id']}/input/{keys['description']}")
        assert (
            f"## {MODEL}/2: awaiting_approval" in question
            and "1.800 [1.700, 1.900]" in question
            and "1.900 [1.800, 2.000]" in question
        )

        answer = {"decision": "promote", "reason": "looked at the samples", "your_name": "ada"}
        refused = prefect.post(
            f"flow_runs/{prefect.wait_for_state(second[0], 'Suspended')['id']}/resume",
            {"run_input": {**answer, "decision": "perhaps"}},
        )
        assert refused["status"] == "REJECT" and open_ledger(home).champion(MODEL) == 1
        prefect.post(f"flow_runs/{prefect.wait_for_state(second[0], 'Suspended')['id']}/resume", {"run_input": answer})
        assert prefect.wait_for_state(second[0], "Completed", "Failed", "Crashed")["state_name"] == "Completed"
        row = open_ledger(home).rows(MODEL)[-1]
        assert (row.action, row.version, row.who, row.why) == ("promoted", 2, "ada via Prefect", "looked at the samples")
        assert open_tracking(home).aliases(MODEL) == {"champion": 2}

        prefect.post(f"flow_runs/{prefect.wait_for_state(third[0], 'Suspended')['id']}/resume", {"run_input": answer})
        late = prefect.wait_for_state(third[0], "Completed", "Failed", "Crashed")
        assert late["state_name"] == "Failed"
        assert (
            late["state"]["message"].startswith(f"the champion is now {MODEL}/2 (by ada via Prefect, ")
            and "\n" not in late["state"]["message"]
        )
        assert len(open_ledger(home).rows(MODEL)) == 4
        awaited = prefect.events("remint.approval.awaited", 2, began)
        assert awaited[f"{MODEL}/2"]["resource"]["prefect.resource.id"] == f"remint.model.{MODEL}"
        payload = awaited[f"{MODEL}/2"]["payload"]
        assert payload["champion"] == f"{MODEL}/1" and payload["promote"] == f'remint promote {MODEL}/2 --reason ".."'
        nll = payload["metrics"]["nll"]
        assert nll["challenger"]["value"] == 1.8 and nll["champion"]["high"] == 2.0 and nll["difference"] == [0.1, 0.05, 0.15]
    finally:
        worker.terminate()
        try:
            worker.wait(timeout=30)
        except subprocess.TimeoutExpired:  # Prefect's own worker sometimes hangs at its end; test_workers.py tests ours
            worker.kill()
            worker.wait()
