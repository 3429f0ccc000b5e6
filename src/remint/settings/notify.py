"""Notifications of verdicts, failures and drift. The block notify: at the top of params.yaml.

The address, with its secret, is in a block of Prefect that a person makes. Settings name the block only.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from remint.settings.base import Settings

Event = Literal["promoted", "refused", "failed", "awaiting_approval", "drifted"]
EVENTS: tuple[Event, ...] = ("promoted", "refused", "failed", "awaiting_approval", "drifted")

BLOCK = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*/[a-z0-9]+(-[a-z0-9]+)*")


def _shown(block: str) -> str:
    """Return a wrong block for an error. An address may hold a secret, and is not repeated."""
    return "an address: that belongs into the block" if set(block) & {".", ":"} or block.count("/") > 1 else repr(block[:100])


class NotifySettings(Settings):
    """Messages by a notification block of Prefect: a webhook, Slack, mail by SendGrid and so on. `remint deploy` sets them up."""

    block: str  # TYPE/NAME of a block, as in slack-webhook/team or custom-webhook/ops
    events: list[Event] = list(EVENTS)  # what is told; drifted: an alarm was opened

    @field_validator("block")
    @classmethod
    def _check_block(cls, block: str) -> str:
        if not BLOCK.fullmatch(block):
            raise ValueError(f"expected TYPE/NAME of a block in Prefect, as in slack-webhook/team, not {_shown(block)}")
        return block

    @field_validator("events")
    @classmethod
    def _check_events(cls, events: list[Event]) -> list[Event]:
        if not events or len(set(events)) < len(events):
            raise ValueError("give at least one event, and each only once, or remove notify to be told nothing")
        return events
