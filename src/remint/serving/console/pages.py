"""Pages of the console: routes over what a Source fetches, and over the versions that the server has loaded.

GET  /                              every pipeline, and what needs a person
GET  /models/NAME                   its versions, decisions, ledger and serving events;  ?all=1  ?verify=1
POST /models/NAME                   roll back
GET  /models/NAME/7                 one version beside another one;  ?against=5
POST /models/NAME/7                 promote or reject
GET  /models/NAME/7/report          the page that the gate wrote
GET  /models/NAME/playground        the champion in use
GET  /challengers/NAME              load the challenger;  POST /challengers/NAME:METHOD  as /v1/models/NAME:METHOD
GET  /login  POST /login            the token, once for a browser
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from remint.errors import LedgerError, NotFoundError, RemintError, SettingsError, UserError
from remint.serving.app import access
from remint.serving.app.api import BODIES, Api
from remint.serving.app.slot import Version
from remint.serving.console.challengers import Challengers
from remint.serving.console.facts import facts
from remint.serving.console.render import render
from remint.serving.console.source import Source
from remint.stores.ledger.row import is_visible

SHOWN = 50  # versions and rows on a model's page
STATIC = Path(__file__).parent / "static"
KINDS = {".css": "text/css", ".js": "text/javascript"}
LONGEST = 200  # characters of a person's name
LONGEST_REASON = 2_000  # characters
FIELDS = 20  # of a form

# Nothing is fetched from elsewhere, no other page may show these in a frame, and a form sends to this server only.
POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
HEADERS = {"referrer-policy": "same-origin", "x-content-type-options": "nosniff", "cache-control": "no-store"}


class Console:
    """The pages of one server. ``person_header``: of a proxy, with the name of the person who asks; None: nobody may decide."""

    def __init__(self, api: Api, source: Source, challengers: Challengers, person_header: str | None, token: str | None) -> None:
        self.api, self.source, self.challengers = api, source, challengers
        self.person_header, self.token = person_header, token
        self.beside = Api(challengers.slots, api.follower, api.limits)

    def router(self) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        pages: dict[str, Callable[..., Any]] = {
            "/": self.overview,
            "/models/{name}": self.model,
            "/models/{name}/playground": self.playground,
            "/models/{name}/{version}": self.version,
            "/models/{name}/{version}/report": self.report,
            "/challengers/{name}": self.challenger,
            access.LOGIN: self.login,
            "/static/{name}": self.static,
        }
        for path, page in pages.items():
            router.add_api_route(path, page, methods=["GET"])
        router.add_api_route("/models/{name}", self.roll_back, methods=["POST"])
        router.add_api_route("/models/{name}/{version}", self.decide, methods=["POST"])
        router.add_api_route(access.LOGIN, self.log_in, methods=["POST"])
        router.add_api_route("/challengers/{name}:{method}", self.ask_challenger, methods=["POST"])
        return router

    def overview(self, request: Request) -> Response:
        return self._page(request, "overview.html", lambda: {"entries": self.source.overview()})

    def model(self, request: Request, name: str, all: bool = False, verify: bool = False) -> Response:
        return self._model(request, name, None if all else SHOWN, verify)

    def _model(
        self, request: Request, name: str, count: int | None = SHOWN, verify: bool = False, problem: RemintError | None = None
    ) -> Response:
        def content() -> dict[str, Any]:
            found = self.source.history(name, count)
            checked = self.source.verify(name) if verify else None
            return {"history": found, "checked": checked, "count": count, "serving": self._serving(name)}

        return self._page(request, "model.html", content, problem)

    def version(self, request: Request, name: str, version: str, against: str = "") -> Response:
        return self._version(request, name, version, against)

    def _version(
        self, request: Request, name: str, version: str, against: str = "", problem: RemintError | None = None
    ) -> Response:
        def content() -> dict[str, Any]:
            return {"story": self.source.story(name, _number(version), _number(against) if against else None)}

        return self._page(request, "version.html", content, problem)

    def report(self, request: Request, name: str, version: str) -> Response:
        try:
            page = self.source.report(name, _number(version))
        except RemintError as error:
            return self._problem(request, error)
        if page is None:
            return self._problem(request, NotFoundError(f"{name}/{version} has no report page"))
        return HTMLResponse(page, headers={**HEADERS, "content-security-policy": REPORT_POLICY})

    def playground(self, request: Request, name: str) -> Response:
        slot = self.api.slots.get(name)
        if slot is None:
            return self._problem(request, NotFoundError(f"this server does not serve {name}"))
        served = facts(slot.version) if slot.version else None
        return self._page(request, "playground.html", lambda: {"name": name, "served": served, "serving": self._serving(name)})

    def challenger(self, name: str) -> Response:
        if name not in self.api.slots:
            raise HTTPException(404, f"this server does not serve {name[:LONGEST]}")
        try:
            return JSONResponse(facts(self.challengers.load(name)))
        except RemintError as error:
            return JSONResponse({"detail": str(error)}, _status(error))

    async def ask_challenger(self, request: Request, name: str, method: str) -> Response:
        if method not in BODIES:
            raise HTTPException(404, "unknown method")
        return await self.beside.ask(name, method, request, BODIES[method])

    async def roll_back(self, request: Request, name: str) -> Response:
        return await self._decided(
            request,
            f"/models/{name}#decisions",
            lambda form, who: self.source.rollback(name, form["reason"], who, form["newest"]),
            lambda error: self._model(request, name, problem=error),
        )

    async def decide(self, request: Request, name: str, version: str) -> Response:
        def act(form: dict[str, str], who: str) -> Any:
            if form.get("action") == "promote":
                return self.source.promote(name, _number(version), form["reason"], form.get("against", ""), who, form["newest"])
            if form.get("action") == "reject":
                return self.source.reject(name, _number(version), form["reason"], who, form["newest"])
            raise SettingsError("expected the action promote or reject")

        return await self._decided(
            request,
            f"/models/{name}/{version}#decisions",
            act,
            lambda error: self._version(request, name, version, problem=error),
        )

    async def _decided(
        self, request: Request, then: str, act: Callable[[dict[str, str], str], Any], again: Callable[[RemintError], Response]
    ) -> Response:
        """Carry out what a person decided, and show the page that the decision is on."""
        who = self._person(request)
        if not who:
            return self._problem(request, UserError("a decision needs a person's name, and this request has none"), 403)
        form = {"reason": "", "newest": "", **await _form(request)}
        form["reason"] = form["reason"].strip()
        try:
            if len(form["reason"]) > LONGEST_REASON:
                raise SettingsError(f"a reason has at most {LONGEST_REASON:,} characters")
            await asyncio.to_thread(act, form, f"{who} via console")
        except RemintError as error:
            return await asyncio.to_thread(again, error)
        return RedirectResponse(then, 303)

    def login(self, request: Request) -> Response:
        return self._page(request, "login.html", lambda: {"wrong": False})

    async def log_in(self, request: Request) -> Response:
        given = (await _form(request)).get("token", "")
        if self.token is None or not hmac.compare_digest(given.encode(), self.token.encode()):
            return HTMLResponse(render("login.html", wrong=True, person=""), 401, headers=_headers())
        response = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        response.set_cookie(access.COOKIE, access.cookie_of(self.token), httponly=True, samesite="strict", secure=secure)
        return response

    def static(self, name: str) -> Response:
        path = next((each for each in STATIC.iterdir() if each.name == name and each.suffix in KINDS), None)
        if path is None:
            raise HTTPException(404, "no such file")
        return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers={"cache-control": "no-cache"})

    def _page(
        self, request: Request, template: str, content: Callable[[], dict[str, Any]], problem: RemintError | None = None
    ) -> Response:
        """Return a page. ``problem``: why what was asked was not done, shown on it."""
        person = self._person(request)
        try:
            page = render(template, person=person, problem=problem, **content())
        except RemintError as error:
            return self._problem(request, error)
        return HTMLResponse(page, _status(problem) if problem else 200, headers=_headers())

    def _problem(self, request: Request, error: RemintError, status: int | None = None) -> Response:
        page = render("problem.html", person=self._person(request), problem=error)
        return HTMLResponse(page, status or _status(error), headers=_headers())

    def _person(self, request: Request) -> str:
        """Return the name of the person who asks; "" if no proxy says it, or if there are two."""
        names = request.headers.getlist(self.person_header) if self.person_header else []
        if len(names) != 1:
            return ""
        name = names[0].encode("latin-1").decode("utf-8", "replace").strip()[:LONGEST]
        return name if is_visible(name) else ""

    def _serving(self, name: str) -> dict[str, Any]:
        """Return what this server does with a name."""
        slot, follower = self.api.slots.get(name), self.api.follower
        version: Version | None = slot.version if slot else None
        return {
            "served": slot is not None,
            "version": version,
            "refused": follower.refusal(name),
            "problem": follower.problems.get(name) or follower.absent.get(name, ""),
        }


def _headers() -> dict[str, str]:
    return {**HEADERS, "content-security-policy": POLICY}


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form, which a browser sends as application/x-www-form-urlencoded."""
    body = await request.body()
    if len(body) <= access.FORM_BYTES:
        with suppress(ValueError):  # more fields
            return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=FIELDS))
    raise HTTPException(413, f"a form has at most {access.FORM_BYTES:,} bytes and {FIELDS} fields")


def _number(text: str) -> int:
    """Return the number of a version. Raises NotFoundError for a text that is none."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise NotFoundError(f"there is no version '{text[:20]}': expected its number")
    return int(text)


def _status(error: RemintError) -> int:
    if isinstance(error, NotFoundError):
        return 404
    if isinstance(error, UserError):
        return 422
    return 409 if isinstance(error, LedgerError) else 503
