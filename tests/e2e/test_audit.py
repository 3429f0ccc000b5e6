"""Prefect's part of remint audit, with a real server: open flow runs without a process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Pending, Running, State

from flows.server import reconcile
from flows.stack import audit
from remint.runtime import jobs
from remint.runtime.home import Home


@flow(name="retrain")
def retrain() -> None: ...


@flow(name="somebody else's")
def other() -> None: ...


@pytest.fixture
def client(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setattr(reconcile, "SETTLE", 0.0)
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def home(tmp_path: Path, empty: Path) -> Home:
    shutil.copytree(empty, tmp_path / "home")
    return Home(tmp_path, tmp_path / "home").ensure()


@pytest.mark.soak
def test_only_flow_runs_without_a_process_are_found_and_marked_crashed(
    client: SyncPrefectClient, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, state: State) -> UUID:
        return client.create_flow_run(other if name == "other" else retrain, name=name, state=state).id

    states = {"healthy": Running(), "killed": Running(), "claimed": Pending(), "ended": Completed(), "other": Running()}
    runs = {name: run(name, state) for name, state in states.items()}
    with ExitStack() as stack:
        stack.enter_context(jobs.live(home, pipeline="m", flow_run=str(runs["healthy"])))
        folder = home.jobs / "20260101T000000-dead00"
        folder.mkdir()
        jobs.Job(folder).note(pid=1, pipeline="m", flow_run=str(runs["killed"]))
        (home.workspaces / folder.name).mkdir(parents=True)

        def found(own: bool) -> set[str]:
            named = {
                name: run_id
                for name, run_id in runs.items()
                for each in reconcile.orphan_runs(home, own_server=own)
                if each.id == run_id
            }
            return set(named)

        assert found(own=True) == {"killed"}, "the claimed one may be starting"
        monkeypatch.setattr(reconcile, "UNATTENDED", -60.0)
        assert found(own=True) == {"killed", "claimed"}
        assert found(own=False) == {"killed"}, "on a shared server another machine may be at work on it"
        faults = {each.finding.thing.split()[2]: each for each in audit.flow_runs(home, own_server=True)}
        assert "process 1 of its job" in faults["killed"].finding.what and "It is Pending" in faults["claimed"].finding.what
        for name in ("killed", "claimed"):
            assert faults[name].mend is not None
            faults[name].mend()
        assert found(own=True) == set() and jobs.dead(home) == []
        assert not (home.workspaces / folder.name).exists()
        after = {name: client.read_flow_run(run_id).state_name for name, run_id in runs.items()}
    assert after == {"healthy": "Running", "killed": "Crashed", "claimed": "Crashed", "ended": "Completed", "other": "Running"}


def test_a_server_that_does_not_answer_is_a_finding(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with audit._prefect(home, print, True) as ask:
        (fault,) = ask()
    assert (fault.finding.kind, fault.finding.thing) == ("unreachable", "Prefect") and not fault.finding.safe
