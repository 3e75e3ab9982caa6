"""Configures the spans that FastAPI makes of HTTP requests.

Each request has one of kind SERVER, by OpenTelemetry's HTTP conventions (`http.*`, `url.*`), named
after its route. It continues the client's `traceparent`. A blocking call's span lasts until its
response.
"""

from __future__ import annotations

from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import TracerProvider

from server.paths import METRICS, PROBES

UNTRACED = PROBES | {METRICS}
"""Machines ask for these every few seconds."""


def telemetry(provider: TracerProvider | None) -> TelemetryConfig:
    """Spans if there is a provider, and nothing else.

    FastAPI's logs would hold texts of exceptions, its metrics would repeat `/metrics`, and
    `auto_configure` would set up a second provider.
    """
    return TelemetryConfig(
        tracer_provider=provider,
        tracing=provider is not None,
        metrics=False,
        logs=False,
        operation_spans=False,
        auto_configure=False,
        exclude=lambda scope: scope["path"] in UNTRACED,
    )
