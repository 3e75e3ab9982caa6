"""Trace spans of a run.

One request is one trace. The record carries the `traceparent` (W3C) of the gateway's submit span
to the worker. Its children are `queued` and `run`, and a run has one child for each stage. A retry
adds another `queued` and `run`. Spans are made when a run ends: a run whose worker dies has none.

By OpenTelemetry's conventions a run processes a message (`messaging.*`, kind CONSUMER), and
`error.type` is the `error_code`; attributes outside the conventions begin with `mochi.`. Spans hold
no error text, and only numbers of the parameters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import SpanKind, StatusCode, Tracer, get_current_span
from opentelemetry.util.types import AnyValue

from models.request.params import GenerateParams
from worker.job import Job
from worker.process.telemetry import PROPAGATOR, TRACEPARENT
from worker.runtime.run import Run

_MS = 1_000_000


@contextmanager
def traced(tracer: Tracer, job: Job, run: Run, worker: str, device: str) -> Iterator[None]:
    """Spans for the run within, and for its wait in the queue.

    Times are this machine's; the broker's clock only measures the length of the wait.
    """
    parent = PROPAGATOR.extract({TRACEPARENT: job.traceparent})
    began = run.entered[0][1]
    attributes: dict[str, AnyValue] = {
        "mochi.request_id": job.request_id,
        "mochi.attempt": job.attempt,
    }
    waited = round(1000 * (job.queue_seconds or 0)) * _MS
    queued = tracer.start_span("queued", parent, attributes=attributes, start_time=began - waited)
    queued.end(began)
    with tracer.start_as_current_span(
        "run",
        parent,
        SpanKind.CONSUMER,
        attributes
        | {
            "messaging.system": "rq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": job.model,
            "messaging.message.id": job.request_id,
            "mochi.worker": worker,
            "mochi.device": device,
        },
        start_time=began,
        record_exception=False,  # an exception's text may hold a prompt
        set_status_on_exception=False,
    ):
        try:
            yield
        except BaseException as error:
            note_failure(type(error).__name__)
            raise
        finally:
            _stages(tracer, run)


def note_params(params: GenerateParams) -> None:
    get_current_span().set_attributes({"mochi.frames": params.frames, "mochi.steps": params.steps})


def note_failure(error_type: str) -> None:
    """Mark the current span as failed."""
    span = get_current_span()
    span.set_attribute("error.type", error_type)
    span.set_status(StatusCode.ERROR, error_type)


def _stages(tracer: Tracer, run: Run) -> None:
    """A span for each stage, from its start to the start of the next one."""
    ends = [*(began for _, began in run.entered[1:]), time.time_ns()]
    for (stage, began), end in zip(run.entered, ends, strict=True):
        tracer.start_span(stage, start_time=began).end(end)
