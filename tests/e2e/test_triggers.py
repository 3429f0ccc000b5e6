"""Triggers on a real Prefect server: what starts a retraining, and that it starts once."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed, Running

from flows.server import stopping
from flows.stack.deploy import deploy, describe, plan
from flows.watch import watch
from remint.errors import DataError, OrchestrationError
from remint.promotion import new_data
from remint.runtime.home import Home
from remint.settings.params import Params, load_params, read_params, write_params
from tests.support.team import SOURCE

NAME = "digits-flow"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Repository of one pipeline whose source is a folder, and its home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REMINT_HOME", raising=False)
    (tmp_path / "flows").symlink_to(SOURCE / "flows")  # Prefect reads the file of a flow
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a").write_bytes(b"1")
    write_triggers(tmp_path, {"data_changed": {"every": "5m"}})
    subprocess.run("git init -q -b main && git add params.yaml && git commit -qm first", shell=True, check=True)
    return Home(tmp_path, tmp_path / ".remint").ensure()


def write_triggers(folder: Path, triggers: dict[str, Any], **blocks: Any) -> Params:
    content = read_params(SOURCE)
    content["datasets"]["digits"]["source"] = "data"
    kept = content["pipelines"][NAME] | {"triggers": triggers, "schedule": {}} | blocks
    write_params({"datasets": {"digits": content["datasets"]["digits"]}, "pipelines": {NAME: kept}}, folder)
    return load_params(folder)


def deployed(home: Home) -> list[str]:
    params = load_params(home.repository)
    planned = plan(home, params, "main")
    deploy(home, params, planned)
    assert {change.action for change in plan(home, params, "main")} <= {"unchanged"}, "a second deployment changes nothing"
    return [describe(change) for change in planned]


def look() -> State[Any]:
    found: State[Any] = watch(NAME, branch="main", return_state=True)
    return found


def runs(client: SyncPrefectClient) -> list[FlowRun]:
    deployment = client.read_deployment_by_name(f"retrain/{NAME}").id
    found = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])))
    return sorted(found, key=lambda run: str(run.created))


def test_a_trigger_needs_no_schedule_and_one_that_goes_is_removed(client: SyncPrefectClient, home: Home) -> None:
    assert deployed(home) == [
        f"+ retrain/{NAME}: by triggers, from the head of main",
        f"+ watch/{NAME}: retrains if the sources changed, every 5 minutes",
    ]
    found = client.read_deployment_by_name(f"watch/{NAME}")
    assert found.parameters == {"pipeline": NAME, "branch": "main"} and found.entrypoint == "flows/watch.py:watch"
    write_triggers(home.repository, {"data_changed": {"every": "1h"}}, schedule={"cron": "0 3 * * *"})
    assert deployed(home)[1].startswith(f"~ watch/{NAME}: retrains if the sources changed, every 1 hour (changed: interval 300")
    write_triggers(home.repository, {"data_changed": {"every": "1h"}})
    assert deployed(home)[0].startswith(f"~ retrain/{NAME}: by triggers, from the head of main (changed: cron 0 3 * * * -> None")
    assert client.read_deployment_by_name(f"retrain/{NAME}").schedules == [], "no run of the former schedule starts"
    write_triggers(home.repository, {}, schedule={"cron": "0 3 * * *"})
    assert [line[:8] for line in deployed(home)] == ["~ retrai", "- watch/"]


def test_new_data_start_one_run(client: SyncPrefectClient, home: Home) -> None:
    deployed(home)
    first = look()
    assert first.name == "Started" and [run.parameters["reason"] for run in runs(client)] == ["data changed"]
    (run,) = runs(client)
    assert run.parameters == {"pipeline": NAME, "branch": "main", "reason": "data changed"}
    assert look().name == "Unchanged", "it waits for a worker"
    client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, Cancelled(name=stopping.SKIPPED), force=True)
    assert look().name == "Started" and len(runs(client)) == 2, "it gave way to another run, so the data are still new"
    client.set_flow_run_state(runs(client)[1].id, Failed(message="no memory"), force=True)
    again = look()
    assert again.name == "Unchanged" and "it is Failed" in str(again.message), "a failing training is not repeated all day"
    (home.repository / "data/b").write_bytes(b"2")
    assert look().name == "Started" and len(runs(client)) == 3
    client.set_flow_run_state(runs(client)[2].id, Completed(name="Kept"), force=True)
    assert look().name == "Unchanged" and len(runs(client)) == 3
    new_data._write(home, NAME, new_data.DONE, new_data.fingerprint(home, load_params(home.repository), NAME))
    assert look().message == "the sources did not change since the newest retraining"


def test_two_looks_at_once_start_one_run(client: SyncPrefectClient, home: Home, prefect_server: str) -> None:
    deployed(home)

    def one(_: int) -> str:
        with temporary_settings({PREFECT_API_URL: prefect_server}):
            return str(look().name)

    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(one, range(4)))
    assert "Started" in names and set(names) <= {"Started", "Unchanged"} and len(runs(client)) == 1


def test_a_source_that_is_gone_and_a_missing_deployment_are_one_line(client: SyncPrefectClient, home: Home) -> None:
    with pytest.raises(OrchestrationError, match=rf"^retrain/{NAME} is not deployed: run remint deploy$"):
        look().result()
    (home.repository / "data/a").unlink()
    (home.repository / "data").rmdir()
    with pytest.raises(DataError, match=r"^params.yaml: datasets.digits.source: there is no file or folder \S+/data: put it"):
        look().result()
