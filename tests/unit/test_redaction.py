"""Redaction: secrets are removed from messages, and nothing else is changed."""

from __future__ import annotations

import base64
import traceback
from pathlib import Path

import pytest

from remint.errors import LedgerError, RemintError, StepError, by_name
from remint.redaction import redact_file, redacted, variable_in

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfi"


@pytest.fixture(autouse=True)
def no_secrets_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REMINT_LEDGER", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("postgresql://ada:pw@host:5432/db failed", "postgresql://ada:***@host:5432/db failed"),
        ("https://ada:pw@host/x and http://token@host", "https://***@host/x and http://***@host"),
        ("the ledger at postgresql://ada:p%40w@h/db?sslmode=require", "the ledger at postgresql://ada:***@h/db?sslmode=require"),
        ("postgresql://ada@/db?host=/tmp&password=pw", "postgresql://ada@/db?host=/tmp&password=***"),
        ("connection to 'user=ada password=pw host=h' failed", "connection to 'user=ada password=*** host=h' failed"),
        ("aws_secret_access_key = pw", "aws_secret_access_key = ***"),
        ("https://h/x?X-Amz-Signature=pw&n=1", "https://h/x?X-Amz-Signature=***&n=1"),
        ("{'Authorization': 'Basic YTpi'}", "{'Authorization': '***'}"),
        ("Authorization: Bearer eyJh", "Authorization: ***"),
    ],
)
def test_text_that_looks_like_a_secret_is_redacted(said: str, left: str) -> None:
    assert redacted(said) == left and redacted(left) == left


@pytest.mark.parametrize(
    "said",
    [
        "expected sqlite:///FILE or postgresql://USER@HOST/DATABASE",
        "git@github.com:team/remint.git, ssh://git@github.com/x and s3://bucket/a@b.png",
        "training.steps=20: basic authentication is what a bearer of news lacks",
        "the object 'x@y' changed; tokens 5, key: value",
    ],
)
def test_text_without_secrets_is_unchanged(said: str) -> None:
    assert redacted(said) == said


def test_headers_for_a_collector_of_traces_are_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a-token-of-theirs,x-api-key=another-one-of-them")
    assert redacted("it said a-token-of-theirs, then another-one-of-them") == "it said ***, then ***"


def test_secrets_of_the_environment_are_redacted_in_each_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ada:open sesame")
    monkeypatch.setenv("REMINT_LEDGER", "postgresql://ada:p%40ssw0rd-of-db@h/db")
    header = base64.b64encode(b"ada:open sesame").decode()
    for form in (
        SECRET,
        SECRET.replace("/", "%2F").replace("+", "%2B"),
        "open sesame",
        header,
        "p%40ssw0rd-of-db",
        "p@ssw0rd-of-db",
    ):
        assert redacted(f"it said {form}, then ended") == "it said ***, then ended", form


def test_a_short_secret_is_redacted_only_as_a_whole_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMINT_LEDGER", "postgresql://postgres:postgres@h/db")
    assert redacted("postgres: no such postgresql server") == "***: no such postgresql server"


def test_messages_of_all_errors_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for error in (RemintError(SECRET), LedgerError(f"at {SECRET}"), by_name("StepError", SECRET), by_name("Unknown", SECRET)):
        assert SECRET not in str(error) and SECRET not in repr(error) and SECRET not in "".join(traceback.format_exception(error))
    assert str(StepError("nothing of the kind")) == "nothing of the kind" and str(StepError()) == ""


def test_a_log_that_contains_a_secret_is_rewritten(tmp_path: Path) -> None:
    log = tmp_path / "push.log"
    log.write_bytes(b"before \xff\nERROR: http://ada:pw@host/bucket\nafter\n")
    redact_file(log)
    assert log.read_bytes() == b"before \xff\nERROR: http://***@host/bucket\nafter\n"
    before = log.stat().st_mtime_ns
    redact_file(log)
    assert log.stat().st_mtime_ns == before


def test_the_variable_whose_secret_a_file_contains_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("REMINT_LEDGER", "postgresql://postgres:postgres@h/db")
    assert variable_in(f"key: {SECRET}\n".encode()) == "AWS_SECRET_ACCESS_KEY"
    assert variable_in(b"install postgres first") is None, "a word of prose"
