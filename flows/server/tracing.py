"""Traces of retrainings by OpenTelemetry, where OTEL_EXPORTER_OTLP_ENDPOINT is set (the extra remint[tracing]).

Prefect makes a span for each flow run and each task, with the run's states as events, and the tasks below their flow run. It
only needs a tracer provider. All other variables of OpenTelemetry work as they do elsewhere: OTEL_SERVICE_NAME,
OTEL_EXPORTER_OTLP_HEADERS and so on. Secrets are redacted before anything is sent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status

from remint.errors import SettingsError
from remint.redaction import redacted


@cache
def install() -> None:
    """Send the spans of this process from now on. Raises SettingsError if the extra is missing."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError:
        raise SettingsError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and traces need an extra: pip install 'remint[tracing]' -c constraints.txt"
        ) from None
    os.environ.setdefault("OTEL_SERVICE_NAME", "remint")
    provider = TracerProvider()  # it sends what is left when the process ends
    provider.add_span_processor(BatchSpanProcessor(RedactingExporter(OTLPSpanExporter())))
    trace.set_tracer_provider(provider)


class RedactingExporter(SpanExporter):
    """Exporter in front of another one, which gets no secrets."""

    def __init__(self, behind: SpanExporter) -> None:
        self.behind = behind

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self.behind.export([_clean(span) for span in spans])

    def shutdown(self) -> None:
        self.behind.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self.behind.force_flush(timeout_millis)


def _clean(span: ReadableSpan) -> ReadableSpan:
    status = span.status
    return ReadableSpan(
        name=redacted(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_redacted(span.attributes),
        events=[Event(redacted(each.name), _redacted(each.attributes), each.timestamp) for each in span.events],
        links=span.links,
        kind=span.kind,
        status=Status(status.status_code, redacted(status.description) if status.description else None),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _redacted(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: _text(value) for name, value in (attributes or {}).items()}


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    return tuple(_text(each) for each in value) if isinstance(value, Sequence) else value
