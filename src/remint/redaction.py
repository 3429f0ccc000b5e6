"""Secrets taken out of what is said, whatever vendor's words it is made of.

A secret is the value of a variable of the environment whose name says so (AWS_SECRET_ACCESS_KEY, PREFECT_API_AUTH_STRING), the
password of an address in any variable (REMINT_LEDGER=postgresql://ada:PASSWORD@host/db), and what stands in a text where an
address has its user and password, its query a token, or a header its authorization.

Every error of ours passes here (remint.errors), and so do Prefect's logs (flows/server/log_filter.py), the logs of children
(remint.runtime.processes) and the traceback of a mistake of ours (remint.cli).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

HIDDEN = "***"
NAMES = re.compile(r"(KEY|KEY_ID|SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|AUTH_STRING)$")  # variables that hold a secret
SHORTEST = 4  # characters: a shorter one would be found in every other word
WORD = 12  # characters: a shorter one is only hidden where it stands as a word of its own ("postgres", not postgresql)

# scheme://user:password@host; http has tokens in the user's place as well. A @ behind a / belongs to a path.
ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]*)://([^\s/\"'<>]*)@", re.IGNORECASE)
# The value of a variable as a whole, where a key with a / in it can be told from a path.
OWN_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://(\S*)@\S*", re.IGNORECASE)
# password=.. of a query or of libpq's settings, aws_secret_access_key = ..
SETTING = re.compile(
    r"\b([\w.-]*(?:password|passwd|secret|token|signature|credential|api_?key|access_?key)[\w.-]*)(\s*=\s*)"
    r"(\"[^\"]*\"|'[^']*'|[^&\s\"',;#)]+)",
    re.IGNORECASE,
)
HEADER = re.compile(r"\b(authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:basic|bearer)\s+)?[^\s'\",}]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """``text`` with *** in place of each secret."""
    for _, secret in _secrets():
        if secret in text:
            text = _pattern(secret).sub(HIDDEN, text)
    text = ADDRESS.sub(_address, text)
    return HEADER.sub(rf"\1{HIDDEN}", SETTING.sub(rf"\1\2{HIDDEN}", text))


def redact_file(path: Path) -> None:
    """Writes a log anew where it holds a secret."""
    text = path.read_text(errors="surrogateescape")
    clean = redacted(text)
    if clean != text:
        path.write_text(clean, errors="surrogateescape")


def variable_in(content: bytes) -> str | None:
    """The variable of the environment whose secret stands in ``content``: one that is too long for a word of prose."""
    return next((name for name, secret in _secrets() if len(secret) >= WORD and secret.encode() in content), None)


def _secrets() -> list[tuple[str, str]]:
    """Each secret of the environment and its variable, the longest first."""
    found = {secret: name for name, value in os.environ.items() for secret in _of(name, value) if len(secret) >= SHORTEST}
    return sorted(((name, secret) for secret, name in found.items()), key=lambda each: -len(each[1]))


def _of(name: str, value: str) -> Iterator[str]:
    """The secrets in one variable, in each form that a message may have them in."""
    plain = []
    if NAMES.search(name):
        plain.append(value)
        _, separator, password = value.partition(":")
        if separator and name.endswith("AUTH_STRING"):
            plain.append(password)
            yield base64.b64encode(value.encode()).decode()  # as a header has it
    own = OWN_ADDRESS.fullmatch(value)
    plain += [own[1].partition(":")[2]] if own else [who.partition(":")[2] for _, who in ADDRESS.findall(value)]
    plain += [setting for _, _, setting in SETTING.findall(value)]
    for secret in plain:
        yield from (secret, unquote(secret), quote(unquote(secret), safe=""))


def _pattern(secret: str) -> re.Pattern[str]:
    word = re.escape(secret)
    return re.compile(word if len(secret) >= WORD else rf"(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])")


def _address(match: re.Match[str]) -> str:
    scheme, who = match[1], match[2]
    if scheme.lower().startswith("http"):
        return f"{scheme}://{HIDDEN}@"
    user, separator, _ = who.partition(":")
    return f"{scheme}://{user}:{HIDDEN}@" if separator else match[0]
