"""Prefect's server for this machine alone: what comes under another name, or from another site's page, is refused.

python -m flows.server.guard PORT    serves Prefect's own application behind that

Who reaches Prefect's API has its worker run commands, and so has a page in a person's browser that may send requests to
127.0.0.1, or has a name of its own resolve to it (DNS rebinding). Prefect looks at neither Host nor Origin, MLflow at both.
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
    """An ASGI application before another one."""

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
    """Whether a request names this machine as its host, once, and comes from no page of another."""
    hosts = [_host(b"//" + value) for name, value in headers if name == b"host"]
    origins = [_host(value) for name, value in headers if name == b"origin"]
    return len(hosts) == 1 and all(host in LOOPBACK for host in (*hosts, *origins))


def _host(address: bytes) -> str | None:
    try:
        return urlsplit(address.decode()).hostname
    except ValueError:
        return None


def main() -> None:
    """Serves until a signal ends it, and ends with its parent."""
    die_with_parent()
    import uvicorn

    port = int(sys.argv[1])
    print(f"Prefect is at http://{LOOPBACK[0]}:{port} when it is ready", flush=True)
    uvicorn.run("flows.server.guard:create_app", factory=True, host=LOOPBACK[0], port=port, access_log=False)


def create_app() -> Any:
    """Prefect's application behind the guard, as ``prefect server start`` has it."""
    os.environ.setdefault("PREFECT__SERVER_FINAL", "1")
    from prefect.server.api.server import create_app as prefect_app

    return Guard(prefect_app())


if __name__ == "__main__":
    main()
