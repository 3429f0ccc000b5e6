"""Notifications on a real Prefect server: a webhook gets the events that were asked for, and a dead address harms no run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed, State

from flows.stack import notify
from remint.errors import SettingsError
from remint.settings.notify import NotifySettings
from tests.support.ports import free_port
from tests.support.prefect_server import PrefectServer


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        yield found
        notify.install(None)


@pytest.fixture
def received() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address of a receiver, and the messages that it got."""
    messages: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            messages.append({**body, "authorization": self.headers["Authorization"]})
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", messages
    server.shutdown()


def make_block(name: str, address: str) -> NotifySettings:
    CustomWebhookNotificationBlock(
        name=name,
        url=address,
        json_data={"subject": "{{subject}}", "text": "{{body}}"},
        headers={"Authorization": "Bearer {{token}}"},
        secrets={"token": "planted-5f1c"},
    ).save(name, overwrite=True)
    return NotifySettings(block=f"custom-webhook/{name}")


def end_run(client: SyncPrefectClient, flow_name: str, state: State[Any]) -> Any:
    @flow(name=flow_name)
    def stand_in(pipeline: str) -> None: ...

    run = client.create_flow_run(stand_in, parameters={"pipeline": "rows"}, name="rows 2026-12-01")
    client.set_flow_run_state(run.id, state, force=True)
    return run.id


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)


def test_a_webhook_gets_the_events_that_were_asked_for_and_no_other(
    client: SyncPrefectClient, server: PrefectServer, received: tuple[str, list[dict[str, Any]]]
) -> None:
    address, messages = received
    settings = make_block("ops", address).model_copy(update={"events": ["promoted", "failed", "drifted"]})
    notify.install(settings)
    notify.install(settings)
    (automation,) = client.read_automations_by_name(notify.NAME)
    assert address not in automation.model_dump_json() and "planted-5f1c" not in automation.model_dump_json()
    time.sleep(2.0)  # the server reads its automations again
    for flow_name, state in (
        ("retrain", Completed(name="Kept", message="not better")),
        ("another program", Failed(message="no concern")),
        ("retrain", Completed(name="Promoted", message="rows/2: promoted; champion: rows/2")),
        ("monitor", Completed(name="Drifted", message="check 2 of rows/1: drift")),
        ("retrain", Failed(message="no memory")),
    ):
        end_run(client, flow_name, state)
    wait_for(lambda: len(messages) == 3)
    time.sleep(2.0)
    assert sorted(message["subject"] for message in messages) == [
        "remint: rows 2026-12-01 ended as Drifted",
        "remint: rows 2026-12-01 ended as Failed",
        "remint: rows 2026-12-01 ended as Promoted",
    ]
    assert any("rows 2026-12-01 (retrain) ended as Promoted: rows/2: promoted; champion" in each["text"] for each in messages)
    assert {message["authorization"] for message in messages} == {"Bearer planted-5f1c"}
    stored = [path.read_bytes() for path in server.home.glob("prefect.db*")]
    assert stored and not any(b"planted-5f1c" in each for each in stored), "Prefect encrypts a block"


def test_a_dead_address_harms_no_run(client: SyncPrefectClient, server: PrefectServer) -> None:
    notify.install(make_block("gone", f"http://127.0.0.1:{free_port()}/hook"))
    time.sleep(2.0)
    log = server.home / "log"
    before = len(log.read_text())
    run = end_run(client, "retrain", Completed(name="Promoted"))
    wait_for(lambda: "ConnectError" in log.read_text()[before:] or "attempts failed" in log.read_text()[before:])
    assert client.read_flow_run(run).state_name == "Promoted"


def test_a_missing_block_and_one_that_sends_nothing_are_one_line(client: SyncPrefectClient) -> None:
    with pytest.raises(SettingsError) as missing:
        notify.install(NotifySettings(block="slack-webhook/team"))
    assert str(missing.value) == (
        "params.yaml: notify.block: Prefect has no block slack-webhook/team: prefect block create slack-webhook gives the page "
        "where you make it, with the name team"
    )
    Secret(value="x").save("quiet", overwrite=True)
    with pytest.raises(SettingsError, match=r"^params.yaml: notify.block: secret/quiet sends no messages: name a notification"):
        notify.install(NotifySettings(block="secret/quiet"))
    assert client.read_automations_by_name(notify.NAME) == []
