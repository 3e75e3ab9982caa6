"""The spans of a run, and what else the job system knows of traces.

One request is one trace: the gateway's span of the submit, whose `traceparent` (W3C) the record
carries to the worker, has for children `queued` and `run`, and a run has one for each of its
stages. Another attempt is another `queued` and `run` in the same trace. A run whose worker dies
leaves no span: they are made when it is over.

By OpenTelemetry's conventions a run processes a message (`messaging.*`, kind CONSUMER) and
`error.type` is the `error_code`; what no convention has a name for begins with `mochi.`. No text
of an error is in a span, and nothing of the parameters but numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import SpanKind, StatusCode, Tracer, get_current_span
from opentelemetry.util.types import AnyValue

from models.params import GenerateParams
from worker.job import Job
from worker.process.telemetry import TRACEPARENT, _propagator
from worker.runtime.run import Run
from worker.store import keyspace

_MS = 1_000_000


@contextmanager
def traced(tracer: Tracer, job: Job, run: Run, worker: str, device: str) -> Iterator[None]:
    """Spans for a run that happens within, and for the time that the request has waited.

    By the clock of this machine: by the broker's, it waited for so long up to now.
    """
    parent = _propagator.extract({TRACEPARENT: job.traceparent})
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
            "messaging.destination.name": keyspace.QUEUE,
            "messaging.message.id": job.request_id,
            "mochi.worker": worker,
            "mochi.device": device,
        },
        start_time=began,
        record_exception=False,  # its text may hold anything
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
    """What the run that happens now is to make."""
    get_current_span().set_attributes({"mochi.frames": params.frames, "mochi.steps": params.steps})


def note_failure(error_type: str) -> None:
    """The run that happens now makes no video."""
    span = get_current_span()
    span.set_attribute("error.type", error_type)
    span.set_status(StatusCode.ERROR, error_type)


def _stages(tracer: Tracer, run: Run) -> None:
    """A stage ends where the next one begins, and the last with the run."""
    ends = [*(began for _, began in run.entered[1:]), time.time_ns()]
    for (stage, began), end in zip(run.entered, ends, strict=True):
        tracer.start_span(stage, start_time=began).end(end)
