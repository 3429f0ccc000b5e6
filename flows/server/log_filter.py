"""Secrets kept out of Prefect's logs, which lie in its database and show in its pages: a filter at each of its handlers."""

from __future__ import annotations

import logging

from remint.redaction import redacted

LOGGERS = ("", "prefect.flow_runs", "prefect.task_runs", "prefect.workers", "prefect.extra")  # those that have handlers


class RedactingFilter(logging.Filter):
    """Lets every record pass, without the secrets in its message and in the traceback that Prefect adds to it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
        return True


def install() -> None:
    """Adds the filter where it is not yet. Prefect, when it is imported, makes its handlers."""
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if not any(isinstance(each, RedactingFilter) for each in handler.filters):
                handler.addFilter(RedactingFilter())
