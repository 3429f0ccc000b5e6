"""Limits of a server, and the check of who asks (access.py), before a request reaches the application.

A body that is too large is refused while it arrives, whatever its header says. All requests in progress share a bound of
their bodies' bytes, and one of their examples (``Room``): what many clients send at once stays within the memory.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from remint.errors import RemintError
from remint.serving.app import access

TOGETHER = 8  # requests of the largest size that are in progress at once, of all names together


@dataclass(frozen=True)
class Limits:
    body_bytes: int = 32 << 20
    examples: int = 10_000  # of one request
    waiting: int = 256  # requests of one name
    seconds: float = 30.0  # that a request waits for its answer, and its body may take


class QueueFull(RemintError):
    """More requests or examples wait than the server takes."""


class Room:
    """Room for the examples of all requests that wait or are answered."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Take room. Raises QueueFull if less is left; the first request always has room."""
        with self._lock:
            if self.taken and self.taken + count > self.most:
                raise QueueFull(f"{self.taken:,} examples wait already: ask again later")
            self.taken += count

    def give(self, count: int) -> None:
        with self._lock:
            self.taken -= count


class Door:
    """ASGI application in front of another one: who asks, and the size of the body. ``count`` is told each refusal's status."""

    def __init__(self, app: Any, limits: Limits, token: str | None, count: Callable[[int], None]) -> None:
        self.app, self.limits, self.token, self.count = app, limits, token, count
        self.login = False  # whether the application has a login page, where a browser without the token is sent
        self.held = 0  # bytes of the bodies of all requests in progress

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if access.is_cross_site(scope["method"], headers):
            await self._refuse(send, 403, "a page of another site sent this: it is not carried out")
            return
        if self.token is not None and not access.is_open(scope["path"]) and not access.has_token(headers, self.token):
            if self.login and access.wants_page(scope["method"], headers):
                await send({"type": "http.response.start", "status": 303, "headers": [(b"location", access.LOGIN.encode())]})
                await send({"type": "http.response.body", "body": b""})
                return
            await self._refuse(send, 401, "this server needs a token: send the header Authorization: Bearer TOKEN")
            return
        body, most = bytearray(), access.FORM_BYTES if access.is_open(scope["path"]) else self.limits.body_bytes
        try:
            status, why = await self._read(receive, body, most)
            if status == 200:
                await self.app(scope, _whole(bytes(body), receive), send)
            elif status:
                await self._refuse(send, status, why)
        finally:
            self.held -= len(body)

    async def _read(self, receive: Any, body: bytearray, most: int) -> tuple[int, str]:
        """Read a body of at most ``most`` bytes. Return 200, or status and reason if it is refused; 0 if the client went away."""
        latest = asyncio.get_running_loop().time() + self.limits.seconds
        while True:
            try:
                async with asyncio.timeout_at(latest):
                    message = await receive()
            except TimeoutError:
                return 408, f"the body did not arrive within {self.limits.seconds:g} s"
            if message["type"] != "http.request":
                return 0, ""
            part = message.get("body", b"")
            body += part
            self.held += len(part)
            if len(body) > most:
                return 413, f"the body has more than {most:,} bytes: send less"
            if self.held > TOGETHER * self.limits.body_bytes:
                return 429, f"all requests have {self.held:,} bytes at the moment: ask again later"
            if not message.get("more_body"):
                return 200, ""

    async def _refuse(self, send: Any, status: int, detail: str) -> None:
        self.count(status)
        body = f'{{"detail": "{detail}"}}'.encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})


def _whole(body: bytes, receive: Any) -> Any:
    """Return an ASGI ``receive`` that gives a body that was read."""
    sent = False

    async def whole() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return dict(await receive())
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return whole
