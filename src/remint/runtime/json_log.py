"""Logs as JSON, one object a line, where REMINT_LOG=json. flows/server/run_log.py adds what it knows of a run.

{"time": "2026-12-01T03:00:07.123+00:00", "level": "INFO", "logger": "remint", "message": "..."}
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any, TextIO

from remint.errors import SettingsError
from remint.redaction import redacted

VARIABLE = "REMINT_LOG"
NAME = "remint"  # of the logger whose lines no library wrote


def is_wanted() -> bool:
    """Return whether logs are JSON."""
    return os.environ.get(VARIABLE) == "json"


def check() -> None:
    """Raise SettingsError if the variable is neither json nor text."""
    value = os.environ.get(VARIABLE) or "text"
    if value not in ("json", "text"):
        raise SettingsError(f"{VARIABLE}: expected json or text, not {value[:20]!r}")


def say(message: str, stream: TextIO | None = None) -> None:
    """Print a line of a service, as JSON if it is wanted. ``stream``: None is standard output."""
    print(line(message) if is_wanted() else message, file=stream, flush=True)


def line(message: str, level: str = "INFO", logger: str = NAME, at: float | None = None, **fields: Any) -> str:
    """Return one line without secrets. ``fields`` that are empty are left out."""
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    written = {"time": moment.isoformat(timespec="milliseconds"), "level": level, "logger": logger, "message": message, **fields}
    return json.dumps({name: redacted(str(value)) for name, value in written.items() if value or name == "message"})


class JsonFormatter(logging.Formatter):
    """Formatter of such lines. Its arguments are those of logging.Formatter, which logging.config passes; none is used."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        exception = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        fields = {"exception": exception, **self.fields(record)}
        return line(record.getMessage(), record.levelname, record.name, record.created, **fields)

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return further fields of a record."""
        return {}


def of_uvicorn() -> dict[str, Any] | None:
    """Return the logging configuration of uvicorn; None: its own."""
    if not is_wanted():
        return None
    handler = {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"json": handler},
        "loggers": {"uvicorn": {"handlers": ["json"], "propagate": False}},
    }
