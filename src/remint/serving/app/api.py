"""HTTP interface of the served models: one FastAPI application.

    POST /v1/models/NAME:METHOD    sample, log_prob, encode, decode, reconstruct, interpolate, score, impute
    GET  /v1/models/NAME           version, digest, since when, decision
    GET  /v1/models                the same of all
    GET  /healthz  /readyz         the process lives; every name has a version
    GET  /metrics                  Prometheus

Each answer names model, version and digest, in its JSON or in headers. A wrong request is 4xx with one line; more requests than
the server takes are 429, and a slow answer is 503.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remint.errors import RemintError, RunError, UserError
from remint.models.density import BOUND_DRAWS
from remint.serving.app import formats
from remint.serving.app.answers import Answer, Request
from remint.serving.app.docs import add_docs
from remint.serving.app.follow import Follower
from remint.serving.app.limits import Door, Limits, QueueFull
from remint.serving.app.metrics import Metrics
from remint.serving.app.slot import Slot, Version
from remint.serving.imputation import masks

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
OfClass = Annotated[str | int, Field(union_mode="left_to_right")]


class Body(BaseModel):
    """What a request may say, in JSON or, where the body is a file, in the query."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    of_class: OfClass | list[OfClass] | None = Field(default=None, alias="class", description="class of all, or of each")


class SampleBody(Body):
    count: Count = 1
    seed: Seed = 0
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0


class ExamplesBody(Body):
    x: list[Any] | None = Field(default=None, description="images, C x H x W as nested lists")
    rows: list[dict[str, Any]] | None = Field(default=None, description="rows of a table, by column")


class LogProbBody(ExamplesBody):
    draws: Annotated[int, Field(ge=1, le=4096)] | None = None
    seed: Seed = 0


class ScoreBody(ExamplesBody):
    false_alarm_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    fdr: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    seed: Seed = 0
    explain: Annotated[bool, Field(description="also a PNG: what each part adds to the highest scores")] = False


class ImputeBody(ExamplesBody):
    missing: list[Any] | None = Field(default=None, description="of images: not 0 where a value is missing, H x W or N x H x W")
    draws: Annotated[int, Field(ge=1, le=200)] = 20
    seed: Seed = 0


class DecodeBody(Body):
    z: list[Any] | None = Field(default=None, description="latents, N x Z")


class InterpolateBody(ExamplesBody):
    """Two examples, the ends."""

    steps: Annotated[int, Field(ge=2, le=1_000)] = 12


OPTIONS = ("draws", "seed", "false_alarm_rate", "fdr", "explain")  # of a method that takes examples
WITHOUT_CLASS = ("log_prob", "score", "impute")  # methods that sum over the classes, or draw them, where none is given


class Api:
    """The endpoints, over slots that a follower fills."""

    def __init__(self, slots: dict[str, Slot], follower: Follower, limits: Limits) -> None:
        self.slots, self.follower, self.limits = slots, follower, limits
        self.metrics = Metrics(slots, follower)

    async def ask(self, name: str, method: str, http: HttpRequest, body: type[Body]) -> Response:
        """Answer one request."""
        with self.metrics.watch(name if name in self.slots else "", method) as outcome:
            response = await self._ask(name, method, http, body)
            outcome(response.status_code)
            return response

    async def _ask(self, name: str, method: str, http: HttpRequest, body: type[Body]) -> Response:
        slot = self._slot(name)
        raw, kind = await http.body(), (http.headers.get("content-type") or formats.JSON).partition(";")[0].strip().lower()
        accept = (http.headers.get("accept") or "*/*").partition(",")[0].partition(";")[0].strip().lower()
        try:
            # Reading and checking take time that other requests need: they run in a thread.
            waiting = await asyncio.to_thread(self._queue, slot, method, kind, raw, dict(http.query_params), body)
            version, found = await asyncio.wait_for(asyncio.wrap_future(waiting), self.limits.seconds)
            return await asyncio.to_thread(self._reply, version, found, accept)
        except TimeoutError:
            return _refused(503, f"no answer within {self.limits.seconds:g} s: ask for less, or later")
        except QueueFull as error:
            return _refused(429, str(error))
        except TooMany as error:
            return _refused(413, str(error))
        except (UserError, ValidationError) as error:
            return _refused(422, _one_line(error))
        except RunError as error:
            return _refused(503, str(error))
        except RemintError as error:
            return _refused(500, str(error))

    def _queue(
        self, slot: Slot, method: str, kind: str, raw: bytes, query: dict[str, str], body: type[Body]
    ) -> Future[tuple[Version, Answer]]:
        given = query if kind in formats.FILES else formats.json_of(raw)
        asked = body.model_validate(given)
        return slot.ask(lambda version: self._prepare(version, method, kind, raw, asked))

    def _prepare(self, version: Version, method: str, kind: str, raw: bytes, asked: Any) -> Request:
        """Return the request in the form of the version that will answer it."""
        served = version.served
        if method == "sample":
            self._check_count(asked.count)
            y_N = None if asked.of_class is None else served.given_classes(asked.of_class, asked.count)
            places = [(asked.seed, index) for index in range(asked.count)]
            return Request(method, y_N=y_N, places=places, options={"temperature": asked.temperature})
        if method == "decode":
            is_file = kind == formats.NPY
            z_NZ = formats.examples(kind, raw, asked, served, formats.latents) if is_file else formats.numbers(asked.z, "z")
            z_NZ = served.latents(z_NZ)
            self._check_count(len(z_NZ))
            return Request(method, z_NZ, served.given_classes(asked.of_class, len(z_NZ)))

        def read(data: Any) -> tuple[Any, Any]:
            if kind == formats.PARQUET:
                self._check_count(formats.row_count(data))  # before they are read: a small file may have a billion
            with served.examples(data, gaps=method == "impute") as found:
                self._check_count(len(found))
                self._check_draws(method, len(found), getattr(asked, "draws", None) or 1)
                known = found.y_N is not None or asked.of_class is not None
                y_N = served.classes_of(found, asked.of_class) if known or method not in WITHOUT_CLASS else None
                return np.concatenate([*found.x_NX]), y_N

        x_NX, y_N = formats.examples(kind, raw, asked, served, read)
        if method == "interpolate":
            if len(x_NX) != 2:
                raise UserError(f"interpolate takes two examples, the ends: there are {len(x_NX)}")
            return Request(method, x_NX, y_N, options={"steps": asked.steps})
        missing_NX = None
        if method == "impute" and not served.spec.is_table:
            _, missing_NX = masks.split(
                served.spec, x_NX, None if asked.missing is None else formats.numbers(asked.missing, "missing")
            )
        options = {name: getattr(asked, name) for name in OPTIONS if hasattr(asked, name)}
        return Request(method, x_NX, None if method == "score" else y_N, missing_NX, options=options)

    def _reply(self, version: Version, found: Answer, accept: str) -> Response:
        about = version.about
        if accept in formats.FILES:
            kind, content = formats.encode(found.values, accept, version.served)
            headers = {f"x-remint-{key.replace('_', '-')}": str(value) for key, value in about.items()}
            return Response(content, media_type=kind, headers=headers)
        names = version.served.spec.class_names
        classes = {} if found.y_N is None else {"classes": [names[y] if names else int(y) for y in found.y_N]}
        return JSONResponse({**about, **found.about, **classes, "values": formats.plain(found.values)})

    def describe(self, name: str) -> dict[str, Any]:
        version = self._slot(name).version
        if version is None:
            raise HTTPException(503, f"{name} is not loaded yet")
        refusal = self.follower.refusal(name)
        refused = {"refused": refusal and refusal.version, "refused_because": refusal and refusal.why}
        return {**version.about, "since": version.since, "decision": version.decision, **refused}

    def ready(self) -> Response:
        missing = [name for name, slot in self.slots.items() if slot.version is None and name not in self.follower.absent]
        return _refused(503, f"not loaded yet: {', '.join(missing)}") if missing else PlainTextResponse("ready\n")

    def _slot(self, name: str) -> Slot:
        if name not in self.slots:
            raise HTTPException(404, f"unknown model {name[:100]!r}: this server has {', '.join(self.slots)}")
        return self.slots[name]

    def _check_count(self, count: int) -> None:
        if count > self.limits.examples:
            raise TooMany(f"{count:,} examples are more than the {self.limits.examples:,} of one request: send several")

    def _check_draws(self, method: str, count: int, draws: int) -> None:
        """Bound the work of one request: the others of its name wait for it."""
        most = self.limits.examples * (BOUND_DRAWS if method == "log_prob" else 1)
        if count * draws > most:
            raise TooMany(f"{draws:,} draws of {count:,} examples are more than the {most:,} of one request: send several")


class TooMany(RemintError):
    """A request has more examples than the server takes."""


def _refused(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": " ".join(detail.splitlines())}, status)  # it may repeat a person's text, of several lines


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}"
    return str(error)


BODIES: dict[str, type[Body]] = {
    "sample": SampleBody,
    "log_prob": LogProbBody,
    "encode": ExamplesBody,
    "decode": DecodeBody,
    "reconstruct": ExamplesBody,
    "interpolate": InterpolateBody,
    "score": ScoreBody,
    "impute": ImputeBody,
}


def create_app(slots: dict[str, Slot], follower: Follower, limits: Limits, token: str | None = None) -> Door:
    """Return the application behind its door (limits.py). It stops following and answers what waits when it shuts down."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(follower.stop)
        for slot in slots.values():
            await asyncio.to_thread(slot.close)

    app = FastAPI(title="remint", lifespan=life, docs_url=None, redoc_url=None)
    api = Api(slots, follower, limits)
    add_docs(app)
    for method, body in BODIES.items():
        _add(app, api, method, body)
    app.add_api_route("/v1/models", lambda: [api.describe(name) for name in slots], methods=["GET"])
    app.add_api_route("/v1/models/{name}", api.describe, methods=["GET"], responses=_refusals(404, 422, 503))
    text: dict[str, Any] = {"methods": ["GET"], "response_class": PlainTextResponse}
    app.add_api_route("/healthz", lambda: PlainTextResponse("alive\n"), **text)
    app.add_api_route("/readyz", api.ready, **text, responses=_refusals(503))
    app.add_api_route("/metrics", api.metrics.page, **text)
    app.state.api = api
    return Door(app, limits, token, api.metrics.refused)


def _add(app: FastAPI, api: Api, method: str, body: type[Body]) -> None:
    """Add the endpoint of one method, with its bodies in the OpenAPI document."""

    async def endpoint(name: str, http: HttpRequest) -> Response:
        return await api.ask(name, method, http, body)

    file = {"schema": {"type": "string", "format": "binary"}}
    content: dict[str, Any] = {formats.JSON: {"schema": body.model_json_schema()}}
    if method != "sample":
        content |= dict.fromkeys(formats.FILES, file) if method != "decode" else {formats.NPY: file}
    answers = {"content": {formats.JSON: {}, **dict.fromkeys(formats.FILES, file)}}
    app.add_api_route(
        f"/v1/models/{{name}}:{method}",
        endpoint,
        methods=["POST"],
        name=method,
        openapi_extra={"requestBody": {"content": content}},
        responses={200: answers, **_refusals(*REFUSALS)},
    )


def _refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"description": REFUSALS[code], "content": {formats.JSON: {}}} for code in codes}


REFUSALS: dict[int, str] = {
    401: "no token, or another one",
    404: "unknown model",
    408: "the body did not arrive in time",
    413: "too large",
    422: "wrong input",
    429: "too many requests wait",
    503: "no version, or no answer in time",
}
