"""Starts tracing if OpenTelemetry's own environment variables name an endpoint.

Without an endpoint, spans do nothing and the libraries of the extra `otel` are not imported.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.trace import NoOpTracerProvider, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from models.errors import INSTALL
from models.version import this_build
from worker.errors import TracingUnusableError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

TRACEPARENT = "traceparent"
"""The field of the record, and the HTTP header."""
PROPAGATOR = TraceContextTextMapPropagator()
STOP_SECONDS = 1.0
"""How long the end of a process waits for a collector that may be away."""
_ENDPOINT = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER = ("OTEL_TRACES_EXPORTER",)


@dataclass(frozen=True)
class Tracing:
    """A process's source of spans. `provider` is None when tracing is off."""

    provider: TracerProvider | None = None

    @property
    def tracer(self) -> Tracer:
        provider = self.provider or NoOpTracerProvider()
        return provider.get_tracer("mochi-server", this_build().version)

    def stop(self) -> None:
        """Send the pending spans, within `STOP_SECONDS`."""
        if self.provider is not None:
            # By itself the library would wait for half a minute.
            sending = threading.Thread(target=self.provider.shutdown, daemon=True)
            sending.start()
            sending.join(STOP_SECONDS)


def start_tracing(environ: Mapping[str, str], service: str, instance: str = "") -> Tracing:
    """Make spans, and send them from a thread, if `environ` names an endpoint.

    Args:
        environ: of this process; the library reads its other variables itself.
        service: name in traces, unless OTEL_SERVICE_NAME is set.
        instance: id of this process in traces; empty: a random one.

    Raises:
        TracingUnusableError: a variable has a bad value, or the libraries are missing.
    """
    variable, endpoint = _first(environ, _ENDPOINT)
    exporter = _first(environ, _EXPORTER)[1]
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or exporter == "none" or is_disabled:
        return Tracing()
    _check_endpoint(variable, endpoint)
    _check_value(environ, _EXPORTER, "otlp")
    _check_value(environ, _PROTOCOL, "http/protobuf")
    try:
        from worker.process import otlp  # noqa: PLC0415 (of an extra)
    except ImportError as error:
        raise TracingUnusableError(
            f"{variable} is set, but the libraries that send traces are not installed ({error}). "
            f"Unset it, or type in a clone of the project: {INSTALL} '.[otel]'"
        ) from None
    try:
        return Tracing(otlp.provider(service, instance))
    except ValueError as error:
        raise TracingUnusableError(f"An OTEL_ variable has a bad value: {error}") from None


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    """The first variable that has a value, and the value. `names`: the most specific first."""
    return next(((name, environ[name]) for name in names if environ.get(name)), (names[-1], ""))


def _check_endpoint(variable: str, endpoint: str) -> None:
    address = urlsplit(endpoint)
    if address.scheme not in {"http", "https"} or not address.hostname:
        raise TracingUnusableError(
            f"{variable}: got {endpoint!r}. It must be the URL of a collector for OTLP over HTTP, "
            "like http://127.0.0.1:4318"
        )


def _check_value(environ: Mapping[str, str], names: tuple[str, ...], only: str) -> None:
    variable, value = _first(environ, names)
    if value not in {"", only}:
        raise TracingUnusableError(
            f"{variable}: got {value!r}. Only {only} is supported: set it so, or unset it. "
            "Most collectors listen for it on port 4318."
        )


def trace_fields() -> Mapping[str, str]:
    """The record's field for the current span; empty without a span."""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return {name: text for name, text in carrier.items() if name == TRACEPARENT}
