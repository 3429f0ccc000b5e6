"""``remint serve --engine ray``: replicas of the application under Ray Serve, and one front that passes requests to them.

    client -> front (this process: token, limits, HTTP) -> a replica (any machine of the cluster: the whole application)

Each replica follows the ledger by itself, so for a moment after a promotion two versions answer; each answer says which one did.
A request is a function of (version, input, seed), so the front asks another replica where one died, and answers 503 where none
is left in time. A replica is healthy while it is ready: Ray Serve starts another one in place of one that is not.

The only caller of Ray in serving/; remint.distributed.connection connects to it.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi.responses import JSONResponse, PlainTextResponse, Response

from remint.distributed import connection
from remint.errors import RunError
from remint.runtime.home import Home
from remint.serving.app import run
from remint.serving.app.limits import Door
from remint.serving.app.metrics import Requests
from remint.serving.app.run import Serving
from remint.serving.app.slot import DRAIN_SECONDS
from remint.stores.open import resolve

TRIES = 2  # replicas that are asked for one answer
GRACE = 5.0  # seconds beyond the replica's own limit for an answer
MODEL_PATH = re.compile(r"/v1/models/([^/:]+):(\w+)")

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]  # status, headers, body
Ask = Callable[[dict[str, Any], bytes], Awaitable[Answer]]  # ASGI scope and body of a request, asked of one replica


class Lost(RunError):
    """The replica that was asked died."""


class Replica:
    """The application of one process, without HTTP."""

    def __init__(self, serving: Serving) -> None:
        """``serving``: of the front, without its token. The home is that of this machine."""
        self.app = run.build(replace(serving, home=Home.of(serving.home.repository).ensure()))

    async def __call__(self, scope: dict[str, Any], body: bytes) -> Answer:
        """Answer one request."""
        parts: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(part: dict[str, Any]) -> None:
            parts.append(part)

        await self.app(scope, receive, send)
        return parts[0]["status"], parts[0]["headers"], b"".join(part.get("body", b"") for part in parts[1:])

    async def check_health(self) -> None:
        """Raise RunError, as Ray Serve asks for, unless each name has a version."""
        status, _, body = await self(
            {"type": "http", "method": "GET", "path": "/readyz", "query_string": b"", "headers": []}, b""
        )
        if status != 200:
            raise RunError(body.decode())


class Front:
    """ASGI application that passes each request to a replica. It answers /healthz and /metrics itself."""

    def __init__(self, ask: Ask, names: Sequence[str], seconds: float) -> None:
        self.ask, self.names, self.seconds = ask, names, seconds
        self.requests = Requests()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")  # uvicorn then goes on without it
        if scope["path"] == "/healthz":
            await PlainTextResponse("alive\n")(scope, receive, send)
        elif scope["path"] == "/metrics":
            await self.requests.page()(scope, receive, send)
        else:
            found = MODEL_PATH.fullmatch(scope["path"])
            name, method = found.groups() if found and found[1] in self.names else ("", "")
            with self.requests.watch(name, method) as outcome:
                response = await self._passed(scope, (await receive())["body"])
                outcome(response.status_code)
            await response(scope, receive, send)

    async def _passed(self, scope: MutableMapping[str, Any], body: bytes) -> Response:
        """Return the answer of a replica, 503 if there is none in time."""
        known = (
            "type",
            "http_version",
            "method",
            "scheme",
            "path",
            "raw_path",
            "query_string",
            "root_path",
            "headers",
            "server",
            "client",
        )
        try:
            async with asyncio.timeout(self.seconds + GRACE):
                for _ in range(TRIES):
                    try:
                        status, headers, content = await self.ask({key: scope[key] for key in known if key in scope}, body)
                    except Lost:
                        continue
                    answer = Response(content, status)
                    answer.raw_headers = [(key, value) for key, value in headers]
                    return answer
        except TimeoutError:
            return JSONResponse({"detail": f"no replica answered within {self.seconds + GRACE:g} s: ask again later"}, 503)
        return JSONResponse({"detail": "the replicas that were asked died: ask again"}, 503)


def serve(serving: Serving, host: str, port: int, replicas: int) -> None:
    """Serve by ``replicas`` processes until SIGINT or SIGTERM; requests in flight are answered.

    Raises UserError if Ray is not installed, ResourceError if no cluster answers, NotFoundError if a name has no such version.
    """
    names = run.check(serving.refs, host, serving.token, serving.tell)
    for ref in serving.refs:
        resolve(serving.home, ref)
    address = connection.cluster_address()
    own: dict[str, Any] = {} if address else {"num_cpus": max(replicas, os.cpu_count() or 1), "include_dashboard": False}
    ray = connection.connect("--engine ray", "serve", address or "local", **own)
    application = f"remint-{socket.gethostname()}-{port}"  # a cluster may have several
    try:
        handle = _deploy(application, replicas, serving)

        async def ask(scope: dict[str, Any], body: bytes) -> Answer:
            try:
                found: Answer = await handle.remote(scope, body)
            except ray.exceptions.RayActorError as error:
                raise Lost(str(error)) from error
            return found

        front = Front(ask, names, serving.limits.seconds)
        run.listen(Door(front, serving.limits, serving.token, front.requests.refused), host, port, serving.token)
    finally:
        ray.serve.delete(application)
        ray.shutdown()


def _deploy(application: str, replicas: int, serving: Serving) -> Any:
    """Start the replicas. Return their handle when each of them is healthy. Raises RunError if they do not start."""
    from ray import serve

    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="Disabled", logging_config=quiet)  # the front listens: a lost replica is no error of a client
    deployment: Any = serve.deployment(
        num_replicas=replicas,
        max_ongoing_requests=2 * serving.limits.waiting * len(serving.refs),  # more than may wait, so that the replica says 429
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        ray_actor_options={"num_gpus": 1} if serving.device.startswith("cuda") else {"num_cpus": 1},
        logging_config=quiet,
    )(Replica)
    try:
        bound = deployment.bind(replace(serving, tell=print, token=None))  # the token stays here
        return serve.run(bound, name=application, route_prefix=None)
    except RuntimeError as error:
        raise RunError(f"the replicas did not start, for the reasons above: {str(error).splitlines()[0]}") from error
