"""Prefect's server for this machine alone: requests for another host name or from another site's page are refused.

python -m flows.server.guard PORT    serves Prefect's application behind this guard

A client of Prefect's API can make its worker run commands. So can a web page in a browser on this machine, if it sends
requests to 127.0.0.1 or lets its own host name resolve to it (DNS rebinding). MLflow checks Host and Origin, Prefect does not.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import urlsplit

from remint.runtime.addresses import LOOPBACK
from remint.runtime.parent import die_with_parent

REFUSED = b"this server answers to this machine only, under the name of 127.0.0.1 or localhost\n"


class Guard:
    """ASGI application in front of another one."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or is_local(scope["headers"]):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": REFUSED})


def is_local(headers: list[tuple[bytes, bytes]]) -> bool:
    """Return whether a request has one Host header, for this machine, and no Origin of another."""
    hosts = [_host(b"//" + value) for name, value in headers if name == b"host"]
    origins = [_host(value) for name, value in headers if name == b"origin"]
    return len(hosts) == 1 and all(host in LOOPBACK for host in (*hosts, *origins))


def _host(address: bytes) -> str | None:
    try:
        return urlsplit(address.decode()).hostname
    except ValueError:
        return None


def main() -> None:
    """Serve until a signal arrives or the parent process ends."""
    die_with_parent()
    import uvicorn

    port = int(sys.argv[1])
    print(f"Prefect starts at http://{LOOPBACK[0]}:{port}", flush=True)
    uvicorn.run("flows.server.guard:create_app", factory=True, host=LOOPBACK[0], port=port, access_log=False)


def create_app() -> Any:
    """Return Prefect's application behind the guard, configured as in ``prefect server start``."""
    os.environ.setdefault("PREFECT__SERVER_FINAL", "1")
    from prefect.server.api.server import create_app as prefect_app

    return Guard(prefect_app())


if __name__ == "__main__":
    main()
