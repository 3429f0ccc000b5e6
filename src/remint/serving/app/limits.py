"""Limits of a server, and the check of its token, before a request reaches the application.

A body that is too large is refused while it arrives, whatever its header says.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any

OPEN_PATHS = ("/healthz", "/readyz")  # without a token: probes of an orchestrator


@dataclass(frozen=True)
class Limits:
    body_bytes: int = 32 << 20
    examples: int = 10_000  # of one request
    waiting: int = 256  # requests of one name
    seconds: float = 30.0  # that a request waits for its answer


class Door:
    """ASGI application in front of another one: token and size of the body."""

    def __init__(self, app: Any, limits: Limits, token: str | None) -> None:
        self.app, self.limits, self.token = app, limits, token

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self.token is not None and scope["path"] not in OPEN_PATHS and not self._may(headers.get(b"authorization", b"")):
            await _refuse(send, 401, "this server needs a token: send the header Authorization: Bearer TOKEN")
            return
        received = 0
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client went away
            received += len(message.get("body", b""))
            if received > self.limits.body_bytes:
                await _refuse(send, 413, f"the body has more than {self.limits.body_bytes:,} bytes: send fewer examples")
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        sent = False

        async def whole() -> dict[str, Any]:
            nonlocal sent
            if sent:
                return dict(await receive())
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, whole, send)

    def _may(self, authorization: bytes) -> bool:
        assert self.token is not None
        return hmac.compare_digest(authorization, b"Bearer " + self.token.encode())


async def _refuse(send: Any, status: int, detail: str) -> None:
    body = f'{{"detail": "{detail}"}}'.encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})
