"""Sends spans to a collector. Imports the libraries of the extra `otel`: see `telemetry.py`.

Batches leave from a thread of the process that made the spans; neither gateway nor worker forks
after its start. What does not fit into the queue while the collector is away is dropped.
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
"""Characters. Paths are whatever a stranger sends, and many may wait in the queue."""
QUIET_SECONDS = 60.0
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)
"""They have a line for every try, and one for every span that does not fit into the queue."""


def provider(service: str, instance: str) -> TracerProvider:
    """What makes spans that are sent as the environment says.

    Raises:
        ValueError: a variable has a value that the library cannot use.
    """
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_Seldom())
    made = TracerProvider(
        resource=_resource(service, instance),
        span_limits=SpanLimits(max_span_attribute_length=LONGEST_ATTRIBUTE),
        shutdown_on_exit=False,  # it would wait for half a minute
    )
    made.add_span_processor(_Discreet())
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


def _resource(service: str, instance: str) -> Resource:
    given = Resource.create({SERVICE_INSTANCE_ID: instance} if instance else {})
    if str(given.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return given.merge(Resource({SERVICE_NAME: service}))
    return given


class _Discreet(SpanProcessor):
    """Takes queries out: that of a link to a video holds its signature, others may a prompt."""

    @override
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if span.attributes and "url.query" in span.attributes:
            span.set_attribute("url.query", "REDACTED")


class _Seldom(logging.Filter):
    """Lets a line pass and then none for a while: a collector that is away is worth no more."""

    _quiet_until = 0.0

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        passes = now >= self._quiet_until
        if passes:
            self._quiet_until = now + QUIET_SECONDS
        return passes
