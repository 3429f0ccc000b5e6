"""Deployments on a real Prefect server: what remint deploy changes, keeps and removes, and what the audit finds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import LogCreate
from prefect.states import Completed, Running

from flows.server.relay import RunLog
from flows.stack import audit, deployments, pace
from flows.stack.deploy import Change, deploy, describe, plan
from flows.stack.pools import install_steps
from remint.errors import SettingsError
from remint.runtime.home import Home
from remint.settings.params import Params, read_params, validate_params
from remint.settings.resources import ResourceSettings
from remint.stores import git
from tests.support.team import SOURCE, make_team, scheduled

WEEK = 7 * 86400


def deployed(home: Home, params: Params, branch: str = "main") -> dict[str, Change]:
    return {change.deployment: change for change in deploy(home, params, plan(home, params, branch))}


def test_what_a_person_paused_stays_paused_and_an_interval_keeps_its_start(client: SyncPrefectClient, home: Home) -> None:
    params = scheduled(digits_vae={"interval": WEEK}, digits_flow={"cron": "0 3 * * *"})
    first = deployed(home, params)
    assert {change.action for change in first.values()} == {"new"}
    assert all("the next scheduled run measures it by 5 trainings" in str(change.warning) for change in first.values())
    vae, flow = (client.read_deployment_by_name(f"retrain/digits-{name}") for name in ("vae", "flow"))
    client.pause_deployment(vae.id)
    client.update_deployment_schedule(flow.id, flow.schedules[0].id, active=False)
    second = deployed(home, params)
    assert {(change.action, change.paused) for change in second.values()} == {("unchanged", True)}
    assert {name: change.id for name, change in second.items()} == {name: change.id for name, change in first.items()}
    third = deployed(home, scheduled(digits_vae={"interval": 2 * WEEK}, digits_flow={"interval": WEEK}))
    assert third["retrain/digits-vae"].changes == {"interval": [WEEK, 2 * WEEK]}
    assert third["retrain/digits-flow"].changes == {"cron": ["0 3 * * *", None], "interval": [None, WEEK]}
    now = client.read_deployment(vae.id)
    assert now.paused and now.schedules[0].schedule.anchor_date == vae.schedules[0].schedule.anchor_date
    assert [each.active for each in client.read_deployment(flow.id).schedules] == [False]


def test_a_pipeline_with_a_shadow_has_a_flow_that_judges_it(client: SyncPrefectClient, home: Home) -> None:
    content = read_params(SOURCE)
    for pipeline in content["pipelines"].values():
        pipeline["schedule"] = {}
    content["pipelines"]["digits-vae"]["serving"] = {"shadow": 0.1}
    params = validate_params(content)
    (change,) = deployed(home, params).values()
    assert (change.deployment, change.action, change.branch) == ("shadow/digits-vae", "new", None)
    assert describe(change) == "+ shadow/digits-vae: judges versions that await shadow, every 15 minutes"
    found = client.read_deployment_by_name("shadow/digits-vae")
    assert found.parameters == {"pipeline": "digits-vae"} and found.entrypoint == "flows/shadow.py:judge_shadow"
    client.pause_deployment(found.id)
    (again,) = deployed(home, params).values()
    assert again.action == "unchanged" and again.paused
    (removed,) = deployed(home, scheduled()).values()
    assert removed.action == "removed" and not client.read_deployments()[1:]


def test_a_plan_changes_nothing_and_names_old_and_new_values(client: SyncPrefectClient, home: Home) -> None:
    deployed(home, scheduled(digits_vae={"cron": "0 3 * * *"}))
    before = client.read_deployment_by_name("retrain/digits-vae")
    moved = Home(home.repository, home.path / "elsewhere")
    planned = plan(
        moved, scheduled(digits_vae={"cron": "0 4 * * *", "timezone": "Europe/Berlin"}, digits_gan={"interval": 30}), "next"
    )
    changes = {change.deployment: change for change in planned}
    assert changes["retrain/digits-vae"].changes == {
        "cron": ["0 3 * * *", "0 4 * * *"],
        "timezone": ["UTC", "Europe/Berlin"],
        "branch": ["main", "next"],
        "home": [str(home.path), str(moved.path)],
    }
    assert changes["retrain/digits-gan"].action == "new" and "it fires again after 0:00:30" in str(
        changes["retrain/digits-gan"].warning
    )
    assert client.read_deployment_by_name("retrain/digits-vae") == before
    assert not [each for each in client.read_deployments() if each.name == "digits-gan"]


def test_only_deployments_that_remint_made_for_this_clone_are_removed(
    client: SyncPrefectClient, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployments, "PAGE", 2)
    deployed(home, scheduled(**{name: {"interval": WEEK} for name in ("digits_vae", "digits_flow", "digits_gan")}))
    flow, ours = client.create_flow_from_name("retrain"), client.read_deployment_by_name("retrain/digits-vae")
    variables, pool = ours.job_variables, {"work_pool_name": deployments.POOL}
    by_hand: list[dict[str, Any]] = [
        {"name": "nightly", "parameters": {"pipeline": "digits-vae"}, "job_variables": variables, **pool},
        {"name": "old", "parameters": {"pipeline": "old"}, "job_variables": {**variables, "working_dir": "/elsewhere"}, **pool},
        {"name": "served", "parameters": {"pipeline": "served"}, "job_variables": variables},
    ]
    for each in by_hand:
        client.create_deployment(flow_id=flow, **each)
    params = scheduled(digits_vae={"rrule": "FREQ=WEEKLY;BYDAY=MO", "timezone": "Europe/Berlin"})
    monkeypatch.setattr(audit, "load_params", lambda _: params)
    found = {each.finding.thing: each for each in audit.leftover_deployments(home)}
    assert set(found) == {"deployment retrain/digits-flow", "deployment retrain/digits-gan"}
    mend = found["deployment retrain/digits-gan"].mend
    assert mend is not None
    mend()
    changes = deployed(home, params)
    assert {name: change.action for name, change in changes.items()} == {
        "retrain/digits-vae": "changed",
        "retrain/digits-flow": "removed",
    }
    assert audit.leftover_deployments(home) == []
    assert [(change.action, change.changes) for change in plan(home, params, "main")] == [("unchanged", {})]
    names = {each.name for each in client.read_deployments()}
    assert names == {"digits-vae", "nightly", "old", "served", "remint"}


def test_the_longest_run_of_a_pipeline_is_that_of_its_completed_runs(client: SyncPrefectClient) -> None:
    from prefect import flow

    @flow(name="retrain")
    def retrain(pipeline: str) -> None: ...

    for name, end in (("ended", Completed()), ("ended", Completed(name="Kept")), ("open", None)):
        run = client.create_flow_run(retrain, parameters={"pipeline": name}, state=Running())
        if end:
            client.set_flow_run_state(run.id, end, force=True)
    found = pace.longest_runs(client)
    assert "open" not in found and found["ended"].total_seconds() > 0


def test_a_pipeline_with_a_pool_is_deployed_for_any_host(client: SyncPrefectClient, tmp_path: Path) -> None:
    repository = make_team(tmp_path / "team").folder
    home = Home(repository, tmp_path / "home").ensure()
    plain = scheduled(digits_vae={"interval": WEEK})

    def placed(**resources: Any) -> Params:
        pipeline = plain.pipelines["digits-vae"]
        resource = ResourceSettings.model_validate(resources)
        return plain.model_copy(update={"pipelines": {"digits-vae": pipeline.model_copy(update={"resources": resource})}})

    with pytest.raises(SettingsError, match="resources.train: unknown pool 'gqu': did you mean 'gpu'?"):
        install_steps("gpu")
        plan(home, placed(train="gqu"), "main")
    install_steps("cpu")
    params = placed(default={"pool": "cpu", "variables": {"env": {"A": "b"}}}, train="gpu")
    with pytest.raises(
        SettingsError, match="default: workers of this pool clone the origin of .*, which has none: git remote add"
    ):
        plan(home, params, "main")
    git.run_git(repository, "remote", "add", "origin", "https://ada:planted@git.example.org/team.git")
    before = deployed(home, plain)["retrain/digits-vae"]
    change = deployed(home, params)["retrain/digits-vae"]
    assert change.action == "changed" and change.id == before.id
    assert change.changes["pool"] == ["remint", "cpu"] and change.changes["folder"] == [str(repository), None]
    assert "(pool cpu; changed: " in describe(change)
    found = client.read_deployment_by_name("retrain/digits-vae")
    assert not found.pull_steps and found.entrypoint == "flows.retrain.retrain" and found.work_pool_name == "cpu"
    assert found.job_variables["command"] == "python -m flows.server.engine" and "working_dir" not in found.job_variables
    kept = {name: value for name, value in found.job_variables["env"].items() if not name.startswith("PREFECT_")}
    assert kept == {"REMINT_REPOSITORY": "https://git.example.org/team.git", "REMINT_BRANCH": "main", "A": "b"}
    assert client.read_deployment_by_name("step/gpu").entrypoint == "flows.pool_step.run_on_pool"
    assert deployed(home, params)["retrain/digits-vae"].action == "unchanged"
    back = deployed(home, plain)["retrain/digits-vae"]
    assert back.action == "changed" and client.read_deployment_by_name("retrain/digits-vae").pull_steps
    deployed(home, params)
    assert deployed(home, scheduled())["retrain/digits-vae"].action == "removed"


def test_events_of_a_step_are_read_once_and_in_their_order(client: SyncPrefectClient) -> None:
    """Lines of another program stand between them, the second process of a run begins at one, and a batch may come late."""
    install_steps("relayed")
    parameters = {"pipeline": "p", "step": "train", "name": "p", "inputs": [], "code": "", "key": ""}
    deployment = client.read_deployment_by_name("step/relayed").id
    run = client.create_flow_run_from_deployment(deployment, parameters=parameters).id
    begun = datetime(2026, 11, 30, tzinfo=UTC)

    def write(*lines: tuple[int, str]) -> None:
        client.create_logs(
            [
                LogCreate(name="x", level=20, flow_run_id=run, timestamp=begun + timedelta(seconds=at), message=message)
                for at, message in lines
            ]
        )

    def event(name: str, *place: int) -> str:
        return f'event {{"event": "{name}", "place": [{place[0]}, {place[1]}]}}'

    log = RunLog(run)
    assert log.new_events(client) == []
    write((1, "Worker submitting"), (3, event("b", 1, 2)), (2, event("a", 1, 1)))
    assert [each["event"] for each in log.new_events(client)] == ["a", "b"]
    assert log.new_events(client) == []
    write((4, event("c", 2, 1)), (40, "Beginning"), (15, event("d", 2, 2)))
    assert log.new_events(client) == [{"event": "c"}, {"event": "d"}]
    write(*((41 + number, event("many", 2, 3 + number)) for number in range(450)))
    assert len(log.new_events(client)) == 450 and log.place == (2, 452) and log.new_events(client) == []
