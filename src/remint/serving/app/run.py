"""``remint serve``: load the models, follow the ledger and answer HTTP, until a signal ends the process."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from remint.errors import SettingsError
from remint.runtime.addresses import LOOPBACK
from remint.runtime.home import Home
from remint.serving.app.api import create_app
from remint.serving.app.follow import Follower, ShadowSettings, no_shadow
from remint.serving.app.limits import TOGETHER, Limits, Room
from remint.serving.app.slot import DRAIN_SECONDS, Slot


def check(refs: Sequence[str], host: str, token: str | None, tell: Callable[[str], None]) -> list[str]:
    """Return the names of the models. Tell if anybody may ask.

    Raises SettingsError if a name is given twice, or if no client can send the token.
    """
    names = [re.split("[@/]", ref)[0] for ref in refs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(f"{twice} is given twice: one version of a name for each server")
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise SettingsError("REMINT_SERVE_TOKEN is empty, or has spaces or no ASCII, which no client can send: set another")
    if host not in LOOPBACK and token is None:
        tell(f"anybody who reaches {host} can ask this server: set REMINT_SERVE_TOKEN, or put a proxy with a login before it")
    return names


def build(
    home: Home,
    refs: Sequence[str],
    limits: Limits,
    every: float,
    device: str,
    token: str | None,
    tell: Callable[[str], None],
    shadow_settings: ShadowSettings = no_shadow,
) -> Any:
    """Return the application, with a version loaded for each name.

    ``every``: seconds between two looks at the ledger. ``shadow_settings``: of a version that awaits shadow, by its row. Raises
    NotFoundError if a name has no such version.
    """
    room = Room(TOGETHER * limits.examples)
    slots = {slot.name: slot for slot in (Slot(ref, limits.waiting, room) for ref in refs)}
    follower = Follower(home, slots, every, device, tell, shadow_settings)
    follower.start()
    return create_app(slots, follower, limits, token)


def serve(
    home: Home,
    refs: Sequence[str],
    host: str,
    port: int,
    limits: Limits,
    every: float,
    device: str,
    token: str | None,
    tell: Callable[[str], None],
    shadow_settings: ShadowSettings = no_shadow,
) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are answered. ``port`` 0 takes a free one."""
    import uvicorn

    check(refs, host, token, tell)
    app = build(home, refs, limits, every, device, token, tell, shadow_settings)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS)
