"""The spans of HTTP requests, which FastAPI makes itself: what of them we want.

One for each request, of kind SERVER, by OpenTelemetry's HTTP conventions (`http.*`, `url.*`) and
named after its route; it goes on where the client's `traceparent` comes from. A blocking call's is
open until its answer. A poll belongs to no other trace than its client's.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import TracerProvider

from server.paths import METRICS, PROBES

UNTRACED = PROBES | {METRICS}
"""Asked every few seconds by machines that look no further."""


def telemetry(provider: TracerProvider | None) -> TelemetryConfig:
    """For FastAPI: spans where there is a provider, and nothing else ever.

    Its logs hold texts of exceptions, its metrics are those of `/metrics`, and its own variable
    would let it set up what we have set up.
    """
    return TelemetryConfig(
        tracer_provider=provider,
        tracing=provider is not None,
        metrics=False,
        logs=False,
        operation_spans=False,
        auto_configure=False,
        exclude=_is_untraced,
    )


def _is_untraced(scope: MutableMapping[str, Any]) -> bool:
    return scope["path"] in UNTRACED
