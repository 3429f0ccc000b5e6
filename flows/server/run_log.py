"""Prefect's logs as JSON where REMINT_LOG=json: each line of a run has its pipeline, its flow run and its step.

Prefect's own variables choose the formatter (its logging.yml), so its workers and servers take it too.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from flows.server import log_filter
from remint.runtime import json_log

# Prefect reads them when it is imported.
PREFECT = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
    "PREFECT_LOGGING_HANDLERS_DEBUG_FORMATTER": "json",
    "PREFECT_LOGGING_FORMATTERS_JSON_CLASS": f"{__name__}.RunFormatter",
    "PREFECT_LOGGING_COLORS": "false",
}
TRACES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
OF_RUN = {"flow_run": "flow_run_id", "flow_run_name": "flow_run_name", "flow": "flow_name", "step": "task_run_name"}


def environment() -> dict[str, str]:
    """Return the variables by which Prefect writes JSON; {} if it is not wanted."""
    return PREFECT if json_log.is_wanted() else {}


def install() -> None:
    """Redact the logs of this process, and send its traces where an endpoint is set. Flows call it when they are imported."""
    log_filter.install()
    if any(os.environ.get(name) for name in TRACES):
        from flows.server import tracing  # imports OpenTelemetry's SDK

        tracing.install()


class RunFormatter(json_log.JsonFormatter):
    """Formatter of Prefect's records, named by PREFECT."""

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        found = {field: getattr(record, name, "") for field, name in OF_RUN.items()}
        given = _parameters()
        found["step"] = found["step"] or given.get("step", "")  # of a step on another pool
        pipeline = given.get("pipeline") or given.get("model", "")
        return {**found, "worker": getattr(record, "worker_name", ""), "pipeline": pipeline}


def _parameters() -> dict[str, Any]:
    """Return the parameters of the run that logs; {}: there is none."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return (context.parameters if context else None) or {}
