"""Filter that redacts secrets in Prefect's logs, which its database stores and its pages show."""

from __future__ import annotations

import logging

from remint.redaction import redacted

LOGGERS = ("", "prefect.flow_runs", "prefect.task_runs", "prefect.workers", "prefect.extra")  # those that have handlers


class RedactingFilter(logging.Filter):
    """Filter that passes every record, with secrets in its message and traceback redacted."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
        return True


def install() -> None:
    """Add the filter to each handler that lacks it. Prefect creates its handlers when it is imported."""
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if not any(isinstance(each, RedactingFilter) for each in handler.filters):
                handler.addFilter(RedactingFilter())
