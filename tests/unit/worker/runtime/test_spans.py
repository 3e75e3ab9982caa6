"""How a run ends is in its span, whatever the end; and no text of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, Tracer, format_span_id, format_trace_id

from models.request.params import GenerateParams
from worker.job import Job, Stage, Status
from worker.process.shutdown import Stop
from worker.process.telemetry import trace_fields
from worker.runtime.run import Run
from worker.runtime.spans import note_failure, note_params, traced
from worker.store.worker_side import Lease

TRACE, SUBMIT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
POND = GenerateParams(prompt="a pond", frames=3, steps=10)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Iterator[Tracer]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider.get_tracer("test")
    provider.shutdown()


def job(traceparent: str = f"00-{TRACE}-{SUBMIT}-01", params: str = "") -> Job:
    return Job(
        request_id="an-id",
        owner="ann",
        status=Status.PROCESSING,
        params_json=params or POND.model_dump_json(),
        attempt=2,
        created_at=1_000,
        started_at=3_500,
        traceparent=traceparent,
    )


def run() -> Run:
    return Run(Lease("an-id", "a-run"), 60, Stop())


def named(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = [span for span in spans.get_finished_spans() if span.name == name]
    return span


def test_it_waited_as_long_as_the_broker_says_by_the_clock_of_this_machine(
    tracer: Tracer, spans: InMemorySpanExporter
) -> None:
    with traced(tracer, job(), run(), "ann", "a card"):
        pass
    queued, ran = named(spans, "queued"), named(spans, "run")
    assert queued.start_time is not None
    assert queued.end_time == ran.start_time == queued.start_time + 2_500_000_000
    for span in (queued, ran):
        assert span.parent is not None
        assert (format_trace_id(span.parent.trace_id), format_span_id(span.parent.span_id)) == (
            TRACE,
            SUBMIT,
        )
        assert span.attributes is not None
        assert span.attributes["mochi.attempt"] == 2


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{SUBMIT}-01"])
def test_a_run_that_comes_from_no_trace_begins_one(
    tracer: Tracer, spans: InMemorySpanExporter, traceparent: str
) -> None:
    with traced(tracer, job(traceparent), run(), "ann", "a card"):
        pass
    assert named(spans, "run").parent is None


def test_a_stage_that_was_not_entered_has_no_span(
    tracer: Tracer, spans: InMemorySpanExporter
) -> None:
    some = run()
    with traced(tracer, job(), some, "ann", "a card"):
        some.on_step(0, 10)
        some.on_step(1, 10)
        note_failure("timeout")
    names = {span.name for span in spans.get_finished_spans()}
    assert names == {"queued", "run", Stage.ENCODING_PROMPT, Stage.DENOISING}
    ran = named(spans, "run")
    assert (ran.status.status_code, ran.status.description) == (StatusCode.ERROR, "timeout")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_escapes_a_run_is_named_by_its_class_alone(
    tracer: Tracer, spans: InMemorySpanExporter, error: type[BaseException]
) -> None:
    def escape() -> None:
        with traced(tracer, job(), run(), "ann", "a card"):
            raise error("a pond at night")

    with pytest.raises(error):
        escape()
    ran = named(spans, "run")
    assert (ran.status.description, ran.events) == (error.__name__, ())


def test_of_the_parameters_only_numbers_are_told(
    tracer: Tracer, spans: InMemorySpanExporter
) -> None:
    with traced(tracer, job(), run(), "ann", "a card"):
        note_params(POND)
    told = named(spans, "run").attributes
    assert told is not None
    assert (told["mochi.frames"], told["mochi.steps"]) == (3, 10)
    assert "a pond" not in str(told)


def test_a_record_with_bad_parameters_is_the_runs_affair(tracer: Tracer) -> None:
    with traced(tracer, job(params="{"), run(), "ann", "a card"):
        pass


def test_a_record_carries_the_span_that_it_is_made_in(tracer: Tracer) -> None:
    assert trace_fields() == {}
    with tracer.start_as_current_span("http") as span:
        context = span.get_span_context()
        (told,) = trace_fields().values()
    _, trace_id, span_id, _ = told.split("-")
    assert trace_id == format_trace_id(context.trace_id)
    assert span_id == format_span_id(context.span_id)
