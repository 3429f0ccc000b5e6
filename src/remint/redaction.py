"""Redaction of secrets in messages and logs, a vendor's text included.

A secret is the value of an environment variable with a matching name (AWS_SECRET_ACCESS_KEY, PREFECT_API_AUTH_STRING), a header
in OTEL_EXPORTER_OTLP_HEADERS, the password of an address in any variable (REMINT_LEDGER=postgresql://ada:PASSWORD@host/db), and
in a text the user and password of an address, a token in a query, or the authorization in a header.

All errors of remint pass through it (remint.errors), Prefect's logs (flows/server/log_filter.py), the logs of children
(remint.runtime.processes), and the traceback of an unexpected error (remint.cli).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

HIDDEN = "***"
NAMES = re.compile(r"(KEY|KEY_ID|SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|AUTH_STRING)$")  # names of variables that hold a secret
SHORTEST = 4  # characters; a shorter secret would match parts of ordinary words
WORD = 12  # characters; a shorter secret is hidden only as a whole word ("postgres", not in postgresql)

# scheme://user:password@host; with http, the user may be a token. An @ after a / belongs to a path.
ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]*)://([^\s/\"'<>]*)@", re.IGNORECASE)
# The whole value of a variable is an address: a / before the last @ belongs to the password, not to a path.
WHOLE_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://(\S*)@\S*", re.IGNORECASE)
# password=.. in a query or in libpq's settings, aws_secret_access_key = ..
SETTING = re.compile(
    r"\b([\w.-]*(?:password|passwd|secret|token|signature|credential|api_?key|access_?key)[\w.-]*)(\s*=\s*)"
    r"(\"[^\"]*\"|'[^']*'|[^&\s\"',;#)]+)",
    re.IGNORECASE,
)
HEADER = re.compile(r"\b(authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:basic|bearer)\s+)?[^\s'\",}]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """Return ``text`` with *** in place of each secret."""
    for _, secret in _secrets():
        if secret in text:
            text = _pattern(secret).sub(HIDDEN, text)
    text = ADDRESS.sub(_hide_login, text)
    return HEADER.sub(rf"\1{HIDDEN}", SETTING.sub(rf"\1\2{HIDDEN}", text))


def redact_file(path: Path) -> None:
    """Rewrite a log if it contains a secret."""
    text = path.read_text(errors="surrogateescape")
    clean = redacted(text)
    if clean != text:
        path.write_text(clean, errors="surrogateescape")


def variable_in(content: bytes) -> str | None:
    """Return the environment variable whose secret is in ``content``. Short secrets are ignored: they can be ordinary words."""
    return next((name for name, secret in _secrets() if len(secret) >= WORD and secret.encode() in content), None)


def _secrets() -> list[tuple[str, str]]:
    """Return (variable, secret) for each secret of the environment, the longest secret first."""
    found = {secret: name for name, value in os.environ.items() for secret in _secrets_in(name, value) if len(secret) >= SHORTEST}
    return sorted(((name, secret) for secret, name in found.items()), key=lambda each: -len(each[1]))


def _secrets_in(name: str, value: str) -> Iterator[str]:
    """Yield the secrets in one variable, in each form that a message may contain."""
    plain = []
    if NAMES.search(name):
        plain.append(value)
        _, separator, password = value.partition(":")
        if separator and name.endswith("AUTH_STRING"):
            plain.append(password)
            yield base64.b64encode(value.encode()).decode()  # as in a header
    if name.endswith("_HEADERS"):  # of OpenTelemetry: authorization=Bearer%20TOKEN,other=..
        plain += [unquote(each.partition("=")[2]).rpartition(" ")[2] for each in value.split(",")]
    whole = WHOLE_ADDRESS.fullmatch(value)
    plain += [whole[1].partition(":")[2]] if whole else [login.partition(":")[2] for _, login in ADDRESS.findall(value)]
    plain += [setting for _, _, setting in SETTING.findall(value)]
    for secret in plain:
        yield from (secret, unquote(secret), quote(unquote(secret), safe=""))


def _pattern(secret: str) -> re.Pattern[str]:
    word = re.escape(secret)
    return re.compile(word if len(secret) >= WORD else rf"(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])")


def _hide_login(match: re.Match[str]) -> str:
    scheme, login = match[1], match[2]
    if scheme.lower().startswith("http"):
        return f"{scheme}://{HIDDEN}@"
    user, separator, _ = login.partition(":")
    return f"{scheme}://{user}:{HIDDEN}@" if separator else match[0]
