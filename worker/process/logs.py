"""Log lines on stderr: JSON for machines, colours at a terminal.

uvicorn, RQ and Python's warnings go through the same formatter. Lines carry ids, never keys,
signatures or prompts. Those of a run have `request_id`, `attempt` and `worker`, and with tracing
`trace_id` and `span_id`.
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from typing import TextIO, cast

import structlog
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span
from structlog.typing import EventDict, Processor

MOST_LINES = 50
"""In a second, of a kind that every client can cause."""

_log = structlog.get_logger()


class _Unfailing:
    """A stream whose reader may have gone: what is logged then is lost, and no work fails of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # closed at the other end, or here
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


class LineLimit:
    """Admits `MOST_LINES` lines in each second; then logs how many were left out.

    Args:
        event: of the line with their count.
    """

    def __init__(self, event: str) -> None:
        self._event = event
        self._second = 0
        self._count = 0

    def admits(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            left_out = self._count - MOST_LINES
            self._second, self._count = second, 0
            if left_out > 0:
                _log.warning(self._event, count=left_out)
        self._count += 1
        return self._count <= MOST_LINES


def configure_logs(**always: str) -> None:
    """Set up structlog and the standard library's logging. Call once, in a `__main__`.

    Args:
        always: fields of every line, in every thread.
    """

    def add_always(_logger: object, _method: str, line: EventDict) -> EventDict:
        return {**always, **line}

    stamper, renderers = _for_terminals() if sys.stderr.isatty() else _for_machines()
    chain: list[Processor] = [
        add_always,
        structlog.contextvars.merge_contextvars,
        _add_span,
        structlog.processors.add_log_level,
        stamper,
    ]
    # Not by way of `logging`, which takes twice the time: it was a tenth of a submit.
    structlog.configure(
        processors=[*chain, *renderers],
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Unfailing(sys.stderr))),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    _configure_others(chain, renderers)


def _for_terminals() -> tuple[Processor, list[Processor]]:
    renderer = structlog.dev.ConsoleRenderer(
        pad_event_to=0,
        # The default one shows local variables, which hold prompts and keys.
        exception_formatter=structlog.dev.plain_traceback,
    )
    return structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False), [renderer]


def _for_machines() -> tuple[Processor, list[Processor]]:
    renderers: list[Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    return structlog.processors.TimeStamper(fmt="iso", utc=True), renderers


def _configure_others(chain: list[Processor], renderers: list[Processor]) -> None:
    """Lines of libraries, which use `logging`, look as ours do."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            foreign_pre_chain=chain,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    # They log each of their state changes; our events cover those that matter.
    for name in ("rq.worker", "uvicorn", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns of each request that is no HTTP.
    limit = LineLimit("http.invalid_more")
    logging.getLogger("uvicorn.error").addFilter(lambda _line: limit.admits())
    # It warns of malformed forms, which the client gets as an error.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def _add_span(_logger: object, _method: str, line: EventDict) -> EventDict:
    context = get_current_span().get_span_context()
    if context.is_valid:
        line["trace_id"] = format_trace_id(context.trace_id)
        line["span_id"] = format_span_id(context.span_id)
    return line
