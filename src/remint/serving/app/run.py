"""``remint serve``: load the models, follow the ledger and answer HTTP, until a signal ends the process."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.registry import Collector

from remint.errors import SettingsError
from remint.runtime import json_log
from remint.runtime.addresses import IPV6, LOOPBACK
from remint.runtime.home import Home
from remint.serving.app import access
from remint.serving.app.api import create_app
from remint.serving.app.follow import Follower, ShadowSettings, no_shadow
from remint.serving.app.limits import TOGETHER, Limits, Room
from remint.serving.app.slot import DRAIN_SECONDS, Slot
from remint.serving.console.challengers import Challengers
from remint.serving.console.pages import Console
from remint.serving.console.source import Source


@dataclass(frozen=True)
class Serving:
    """What a server serves, and how."""

    home: Home
    refs: Sequence[str]  # each NAME (its champion), NAME@challenger or NAME/7
    limits: Limits
    every: float  # seconds between two looks at the ledger
    device: str
    token: str | None
    tell: Callable[[str], None]  # gets one line for each event
    shadow_settings: ShadowSettings = no_shadow  # of a version that awaits shadow, by its row


@dataclass(frozen=True)
class Pages:
    """The console of a server. ``person_header``: where a proxy writes who asks; None: nobody may decide on its pages."""

    source: Source
    person_header: str | None = None
    metrics: Collector | None = None  # of the installation, beside those of the server


def check(
    refs: Sequence[str], host: str, token: str | None, tell: Callable[[str], None], person_header: str | None = None
) -> list[str]:
    """Return the names of the models. Tell if anybody may ask.

    Raises SettingsError if a name is given twice, if no client can send the token, or if a person's name could be anybody's.
    """
    names = [re.split("[@/]", ref)[0] for ref in refs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(f"{twice} is given twice: one version of a name for each server")
    access.check(token, person_header)
    if host not in LOOPBACK and token is None:
        tell(f"anybody who reaches {host} can ask this server: set REMINT_SERVE_TOKEN, or put a proxy with a login before it")
    return names


def check_port(host: str, port: int) -> None:
    """Raise SettingsError if this process cannot listen there: it would load all models first, and record so."""
    try:
        for family, kind, number, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            with socket.socket(family, kind, number) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        raise SettingsError(f"cannot listen at {host}, port {port}: {error.strerror}. Give another --host or --port") from None


def build(serving: Serving, pages: Pages | None = None, wait: bool = False) -> Any:
    """Return the application, with a version loaded for each name.

    ``wait``: load the versions later, each name when it has one. Raises NotFoundError if a name has no such version.
    """
    home, limits = serving.home, serving.limits
    room = Room(TOGETHER * limits.examples)
    slots = {slot.name: slot for slot in (Slot(ref, limits.waiting, room) for ref in serving.refs)}
    follower = Follower(home, slots, serving.every, serving.device, serving.tell, serving.shadow_settings)
    follower.start(wait=wait)
    door = create_app(slots, follower, limits, serving.token)
    if pages is not None:
        challengers = Challengers(home, serving.device, limits.waiting, room)
        console = Console(door.app.state.api, pages.source, challengers, pages.person_header, serving.token)
        door.app.include_router(console.router())
        if pages.metrics is not None:
            door.app.state.api.metrics.registry.register(pages.metrics)
        door.login = True
    return door


def serve(serving: Serving, host: str, port: int, pages: Pages | None = None, wait: bool = False) -> None:
    """Serve by this process until SIGINT or SIGTERM, as ``listen`` does."""
    check(serving.refs, host, serving.token, serving.tell, pages.person_header if pages else None)
    listen(build(serving, pages, wait), host, port, serving.token)


def listen(app: Any, host: str, port: int, token: str | None) -> None:
    """Answer HTTP until SIGINT or SIGTERM; requests in flight are answered. ``port`` 0 takes a free one.

    On this machine only and without a token it answers to this machine's names only: a page in a browser could else reach it
    under a name of its own (DNS rebinding).
    """
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    if host in LOOPBACK and token is None:
        app = TrustedHostMiddleware(app, allowed_hosts=[*LOOPBACK, IPV6], www_redirect=False)
    config = json_log.of_uvicorn() or uvicorn.config.LOGGING_CONFIG
    options: dict[str, Any] = {"log_level": "warning", "log_config": config, "access_log": False}
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=DRAIN_SECONDS, **options)
