"""Who may ask a server: the token, in a header or as a cookie of its login page, and no page of another site.

A person's name is taken from a header of a proxy that logs people in. Only a request with the token has one: anybody else who
reaches the port could write any name.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.requests import cookie_parser

from remint.errors import SettingsError

LOGIN = "/login"
COOKIE = "remint"
OPEN_PATHS = ("/healthz", "/readyz", LOGIN)  # without a token: probes of an orchestrator, and the way to give it
OPEN_FOLDER = "/static/"  # styles and scripts of the login page
FORM_BYTES = 32 << 10  # of a form, and of any body without a token; 2,000 characters may be 18,000 bytes
SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing

Headers = Mapping[bytes, bytes]  # names in lower case


def check(token: str | None, person_header: str | None) -> None:
    """Raise SettingsError if no client can send the token, or if a name in the header could be anybody's."""
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise SettingsError("REMINT_SERVE_TOKEN is empty, or has spaces or no ASCII, which no client can send: set another")
    if person_header is None:
        return
    if not re.fullmatch(r"[A-Za-z0-9-]+", person_header):
        raise SettingsError(f"REMINT_SERVE_PERSON: expected the name of a header, such as X-Remote-User, not {person_header!r}")
    if token is None:
        raise SettingsError(
            f"REMINT_SERVE_PERSON names the header {person_header}, which anybody who reaches this server can send: set "
            "REMINT_SERVE_TOKEN too, and let the proxy send it as Authorization: Bearer TOKEN"
        )


def is_open(path: str) -> bool:
    """Return whether a path needs no token."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def has_token(headers: Headers, token: str) -> bool:
    """Return whether a request has the token, or the cookie of a login with it."""
    if hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + token.encode()):
        return True
    given = cookie_parser(headers.get(b"cookie", b"").decode("latin-1")).get(COOKIE, "")
    return hmac.compare_digest(given.encode("latin-1", "replace"), cookie_of(token).encode())


def cookie_of(token: str) -> str:
    """Return the value of the cookie. The token cannot be found from it, and another token ends all logins."""
    return hmac.new(token.encode(), b"remint console", "sha256").hexdigest()


def wants_page(method: str, headers: Headers) -> bool:
    """Return whether a browser asks for a page."""
    return method == "GET" and b"text/html" in headers.get(b"accept", b"")


def is_cross_site(method: str, headers: Headers) -> bool:
    """Return whether a page of another site sent a request that may change something.

    The rule of Go's http.CrossOriginProtection: browsers say where a request comes from, in Sec-Fetch-Site or, older ones, in
    Origin. A program says neither, and holds no cookie of a person.
    """
    if method in SAFE:
        return False
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is not None and _host(origin) != headers.get(b"host", b"").decode("latin-1").lower()


def _host(origin: bytes) -> str | None:
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower() or None
    except ValueError:
        return None
