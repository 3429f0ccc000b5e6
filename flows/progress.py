"""Who listens while a job runs: the terminal where there is one, Prefect's log and artifacts always."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

Listener = Callable[[str, str, dict[str, Any]], None]  # pipeline, event, what is said of it

listeners: list[Listener] = []

_LOGGED = {"workspace", "step", "ran", "restored", "registered", "decided", "unchanged"}


def tell(pipeline: str, event: str, **fields: Any) -> None:
    """Tells everybody. The many "progress" events go to the terminal only: Prefect has its progress artifact."""
    for listener in listeners:
        listener(pipeline, event, fields)
    if event in _LOGGED:
        _logger().info("%s %s", event, " ".join(f"{key}={value}" for key, value in fields.items()))


def _logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("remint")
