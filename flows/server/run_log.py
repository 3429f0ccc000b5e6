"""Prefect's logs as JSON where REMINT_LOG=json: each line of a run has its pipeline, its flow run and its step.

Prefect's own variables choose the formatter (its logging.yml), so its workers and servers take it too.
"""

from __future__ import annotations

import logging
from typing import Any

from remint.runtime import json_log

# Prefect reads them when it is imported.
PREFECT = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
    "PREFECT_LOGGING_HANDLERS_DEBUG_FORMATTER": "json",
    "PREFECT_LOGGING_FORMATTERS_JSON_CLASS": f"{__name__}.RunFormatter",
    "PREFECT_LOGGING_COLORS": "false",
}
OF_RUN = {"flow_run": "flow_run_id", "flow_run_name": "flow_run_name", "flow": "flow_name", "step": "task_run_name"}


def environment() -> dict[str, str]:
    """Return the variables by which Prefect writes JSON; {} if it is not wanted."""
    return PREFECT if json_log.is_wanted() else {}


class RunFormatter(json_log.JsonFormatter):
    """Formatter of Prefect's records, named by PREFECT."""

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        found = {field: getattr(record, name, "") for field, name in OF_RUN.items()}
        return {**found, "worker": getattr(record, "worker_name", ""), "pipeline": _pipeline(found["flow_run_name"])}


def _pipeline(run_name: str) -> str:
    """Return the pipeline of the run that logs; "": none is known."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    parameters = (context.parameters if context else None) or {}
    return str(parameters.get("pipeline") or parameters.get("model") or "")
