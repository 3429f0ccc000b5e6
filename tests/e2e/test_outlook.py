"""What the console says of the next start and of failed runs, from a real Prefect server, and from params.yaml without one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed, Scheduled

from flows.stack.deploy import deploy, plan
from flows.stack.outlook import AWAY, outlooks
from remint.runtime.home import Home
from tests.support.ports import free_port
from tests.support.team import scheduled

CRON = {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}
LEAP = {"cron": "0 0 29 2 *"}  # from March on it is years ahead


def test_prefect_says_when_a_pipeline_starts_and_that_its_newest_run_failed(
    prefect_server: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = scheduled(digits_vae=CRON, digits_flow=LEAP, digits_gan=CRON)
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:
        for each in client.read_deployments():  # of other tests on this server
            client.delete_deployment(each.id)
        done = {change.deployment: change for change in deploy(home, params, plan(home, params, "main"))}
        flow = client.read_deployment(UUID(str(done["retrain/digits-vae"].id))).flow_id
        ended = [
            ("digits-vae", Completed()),
            ("digits-vae", Failed(message="no space left\non the device")),
            ("digits-gan", Failed()),
        ]
        for place, (pipeline, state) in enumerate(ended):
            run = client.create_flow_run_from_deployment(UUID(str(done[f"retrain/{pipeline}"].id)))
            client.set_flow_run_state(
                run.id, state.model_copy(update={"timestamp": datetime.now(UTC) + timedelta(seconds=place)}), force=True
            )
            if pipeline == "digits-gan":  # a later run went well
                again = client.create_flow_run_from_deployment(UUID(str(done[f"retrain/{pipeline}"].id)))
                late = datetime.now(UTC) + timedelta(seconds=9)
                client.set_flow_run_state(again.id, Completed(timestamp=late), force=True)
        client.pause_deployment(UUID(str(done["retrain/digits-gan"].id)))
        soon = datetime.now(UTC) + timedelta(minutes=7)
        due = client.create_flow_run_from_deployment(
            UUID(str(done["retrain/digits-vae"].id)), state=Scheduled(scheduled_time=soon)
        )
        found = outlooks(home, scheduled(digits_vae=CRON, digits_flow=LEAP, digits_gan=CRON, cancer_vae=CRON))
        client.delete_flow_run(due.id)
    assert flow is not None
    vae, gan = found["digits-vae"], found["digits-gan"]
    assert vae.next_start is not None and abs(vae.next_start - soon) < timedelta(seconds=1) and vae.note == ""
    assert "no space left" in vae.failure and "on the device" not in vae.failure
    leap = found["digits-flow"].next_start
    assert leap is not None and (leap.month, leap.day) == (2, 29), "Prefect does not plan so far ahead"
    assert found["cancer-vae"].note == "not deployed: run remint deploy" and found["cancer-vae"].next_start is None
    assert gan.note == "paused in Prefect" and gan.failure == ""
    assert found["cancer-flow"].next_start is None and found["cancer-flow"].note == "", "it has no schedule"


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:{port}/api"])
def test_without_prefect_the_next_start_is_that_of_the_settings(
    home: Home, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    if address:
        monkeypatch.setenv("PREFECT_API_URL", address.format(port=free_port()))
    rule = {"rrule": "FREQ=DAILY;BYHOUR=4;BYMINUTE=30;BYSECOND=0", "timezone": "Europe/Berlin"}
    found = outlooks(home, scheduled(digits_vae=CRON, digits_flow=rule, digits_gan={"interval": 3600}))
    now = datetime.now(UTC)
    for name, time in (("digits-vae", (3, 0)), ("digits-flow", (4, 30))):
        start = found[name].next_start
        assert start is not None and (start.hour, start.minute) == time and str(start.tzinfo) == "Europe/Berlin"
        assert now < start <= now + timedelta(days=1, hours=1) and found[name].note == AWAY
    assert found["digits-gan"].next_start is None and found["digits-gan"].note == AWAY, "it counts from its deployment"
    assert found["cancer-flow"].note == ""
