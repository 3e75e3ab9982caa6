"""Traces are sent where OpenTelemetry's variables ask for it, or the start says what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

import worker.process
from worker.errors import TracingUnusableError
from worker.process.telemetry import Tracing, start_tracing

AWAY = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def _environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads the process's own."""
    for name, value in AWAY.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "films"},
        AWAY | {"OTEL_SDK_DISABLED": "True"},
        AWAY | {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_an_endpoint_or_when_told_so_nothing_is_sent(environ: dict[str, str]) -> None:
    tracing = start_tracing(environ, "films")
    assert tracing == Tracing(None)
    assert not tracing.tracer.start_span("any").is_recording()
    tracing.stop()


@pytest.mark.parametrize(
    "variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
)
def test_an_endpoint_is_enough(variable: str) -> None:
    tracing = start_tracing({variable: "http://127.0.0.1:9"}, "films", "one")
    try:
        assert tracing.tracer.start_span("any").is_recording()
        assert tracing.provider is not None
        told = tracing.provider.resource.attributes
        assert (told["service.name"], told["service.instance.id"]) == ("films", "one")
    finally:
        tracing.stop()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_SERVICE_NAME", "books"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=books,a=b")],
)
def test_the_name_of_the_service_is_the_environments(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    tracing = start_tracing(AWAY, "films")
    assert tracing.provider is not None
    assert tracing.provider.resource.attributes["service.name"] == "books"
    tracing.stop()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
            r"OTEL_EXPORTER_OTLP_ENDPOINT: got 'collector:4318'\. .* like http://127",
        ),
        (
            AWAY | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "ftp://collector"},
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: got 'ftp://collector'",
        ),
        (
            AWAY | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            r"OTEL_EXPORTER_OTLP_PROTOCOL: got 'grpc'\. "
            "Only http/protobuf is supported.* port 4318",
        ),
        (AWAY | {"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: got 'zipkin'.* otlp"),
    ],
)
def test_what_cannot_be_used_is_named_with_the_remedy(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(TracingUnusableError, match=message):
        start_tracing(environ, "films")


def test_a_value_that_the_library_refuses_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(TracingUnusableError, match=r"OTEL_ variable .* max_queue_size must be"):
        start_tracing(AWAY, "films")


def test_without_the_extra_an_endpoint_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "worker.process.otlp", raising=False)
    monkeypatch.delattr(worker.process, "otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(
        TracingUnusableError,
        match=r"^OTEL_EXPORTER_OTLP_ENDPOINT is set.*pip install -c constraints\.txt '\.\[otel\]'",
    ):
        start_tracing(AWAY, "films")


def test_nothing_of_the_extra_is_imported_until_it_is_asked_for() -> None:
    code = "import sys, server.__main__, worker.__main__; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "opentelemetry.trace" in loaded
    assert not {"opentelemetry.sdk.trace", "opentelemetry.exporter", "requests"} & set(loaded)
