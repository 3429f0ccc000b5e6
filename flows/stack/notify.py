"""Notifications: one automation of Prefect's server, which sends a message when a run ends in a state that a person asked for.

The message goes out from Prefect's server, by a block that a person made in Prefect. So no run waits for an address, and none
fails with it. remint stores no address and no secret.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from remint.errors import SettingsError
from remint.settings.notify import Event, NotifySettings

NAME = "remint: notify"
FLOWS = ["retrain", "shadow", "watch", "monitor"]
STATES: dict[Event, tuple[str, ...]] = {
    "promoted": ("Promoted",),
    "refused": ("Refused",),
    "failed": ("Failed", "Crashed"),
    "awaiting_approval": ("AwaitingApproval",),
    "drifted": ("Drifted",),
}
SUBJECT = "remint: {{ flow_run.name }} ended as {{ flow_run.state.name }}"
BODY = "{{ flow_run.name }} ({{ flow.name }}) ended as {{ flow_run.state.name }}: {{ flow_run.state.message }}"


def find_block(settings: NotifySettings) -> UUID:
    """Return the id of the block. Raises SettingsError, with the command that makes it, if there is none or it cannot notify."""
    kind, _, name = settings.block.partition("/")
    with get_client(sync_client=True) as client:
        try:
            found = client.read_block_document_by_name(name, kind, include_secrets=False)
        except ObjectNotFound:
            raise SettingsError(
                f"params.yaml: notify.block: Prefect has no block {settings.block}: prefect block create {kind} gives the page "
                f"where you make it, with the name {name}"
            ) from None
    if found.block_schema is None or "notify" not in found.block_schema.capabilities:
        raise SettingsError(
            f"params.yaml: notify.block: {settings.block} sends no messages: name a notification block, as slack-webhook/{name}"
        )
    return found.id


def install(settings: NotifySettings | None) -> None:
    """Make, update or remove the automation. The calls are idempotent. Raises as ``find_block`` does."""
    with get_client(sync_client=True) as client:
        found = client.read_automations_by_name(NAME)
        if settings is None:
            for each in found:
                client.delete_automation(each.id)
            return
        wanted = _automation(settings, find_block(settings))
        if found:
            client.update_automation(found[0].id, wanted)
        else:
            client.create_automation(wanted)


def _automation(settings: NotifySettings, block: UUID) -> AutomationCore:
    states = sorted(state for event in settings.events for state in STATES[event])
    return AutomationCore(
        name=NAME,
        description="Tells how runs ended. Made by remint deploy from notify: in params.yaml.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}" for state in states},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOWS},
            for_each={"prefect.resource.id"},
        ),
        actions=[SendNotification(block_document_id=block, subject=SUBJECT, body=BODY)],
    )
