"""Sends spans to a collector, with the libraries of the extra `otel`; see `telemetry.py`.

A thread sends batches; neither gateway nor worker forks after its start. While the collector is
away, spans that do not fit into the queue are dropped.
"""

from __future__ import annotations

import logging
import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from typing_extensions import override

LONGEST_ATTRIBUTE = 256
"""Characters. Unauthenticated clients choose paths, and many spans may wait in the queue."""
QUIET_SECONDS = 60.0
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)
"""They log a line for every try, and for every span that does not fit into the queue."""


def provider(service: str, instance: str) -> TracerProvider:
    """A provider whose spans are sent as the environment says.

    Raises:
        ValueError: a variable has a value that the library rejects.
    """
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_RateLimit())
    made = TracerProvider(
        resource=_resource(service, instance),
        span_limits=SpanLimits(max_span_attribute_length=LONGEST_ATTRIBUTE),
        shutdown_on_exit=False,  # it would wait for half a minute
    )
    made.add_span_processor(_RedactQueries())
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


def _resource(service: str, instance: str) -> Resource:
    given = Resource.create({SERVICE_INSTANCE_ID: instance} if instance else {})
    if str(given.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return given.merge(Resource({SERVICE_NAME: service}))
    return given


class _RedactQueries(SpanProcessor):
    """Redacts URL queries: a video link's holds its signature, others may hold a prompt."""

    @override
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if span.attributes and "url.query" in span.attributes:
            span.set_attribute("url.query", "REDACTED")


class _RateLimit(logging.Filter):
    """Passes one line every `QUIET_SECONDS`."""

    _quiet_until = 0.0

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        passes = now >= self._quiet_until
        if passes:
            self._quiet_until = now + QUIET_SECONDS
        return passes
