"""Log lines on stderr: JSON for machines, colours at a terminal.

uvicorn, RQ and Python's warnings go through the same formatter. Lines carry ids, never keys,
signatures or prompts. Those of a run have `request_id`, `attempt` and `worker`, and with tracing
`trace_id` and `span_id`.
"""

from __future__ import annotations

import logging
import sys

import structlog
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span
from structlog.typing import EventDict, Processor


def configure_logs(**always: str) -> None:
    """Set up structlog and the standard library's logging. Call once, in a `__main__`.

    Args:
        always: fields of every line, in every thread.
    """

    def add_always(_logger: object, _method: str, line: EventDict) -> EventDict:
        return {**always, **line}

    renderers: list[Processor]
    if sys.stderr.isatty():
        stamper = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        renderers = [
            structlog.dev.ConsoleRenderer(
                pad_event_to=0,
                # The default one shows local variables, which hold prompts and keys.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    else:
        stamper = structlog.processors.TimeStamper(fmt="iso", utc=True)
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    shared: list[Processor] = [
        add_always,
        structlog.contextvars.merge_contextvars,
        _add_span,
        structlog.stdlib.add_log_level,
        stamper,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    # They log each of their state changes; our events cover those that matter.
    for name in ("rq.worker", "uvicorn", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns of malformed forms, which the client gets as an error.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def _add_span(_logger: object, _method: str, line: EventDict) -> EventDict:
    context = get_current_span().get_span_context()
    if context.is_valid:
        line["trace_id"] = format_trace_id(context.trace_id)
        line["span_id"] = format_span_id(context.span_id)
    return line
