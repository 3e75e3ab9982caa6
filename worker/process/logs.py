"""Log lines on stderr: JSON for machines, colours at a terminal.

uvicorn, RQ and Python's warnings go through the same formatter. Lines carry ids, never keys,
signatures or prompts. Those of a run have `request_id`, `attempt` and `worker`, and with tracing
`trace_id` and `span_id`.

Work never waits for the reader of stderr: see `_StandardError`.
"""

from __future__ import annotations

import atexit
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread, Timer
from types import TracebackType
from typing import NoReturn, TextIO, cast

import structlog
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span
from structlog.typing import EventDict, Processor

from worker.process.systemd import STDERR, journal_prefix

MOST_LINES = 50
"""In a second, of a kind that every client can cause."""

MOST_QUEUED = 10_000
"""Lines that wait for a slow reader, some 3 MB; a killed process loses them."""
EXIT_SECONDS = 1.0
"""How long a process waits at its exit for queued lines to be written."""

_log = structlog.get_logger()


class _StandardError:
    """Where lines go. One that cannot be written is dropped and counted; no work fails of it."""

    def __init__(self) -> None:
        self._unqueued = 0
        self._unwritten = 0
        self._queue: SimpleQueue[str | Event] | None = None

    @property
    def dropped(self) -> int:
        return self._unqueued + self._unwritten

    def start_thread(self) -> None:
        """From now on a thread writes: a pipe or a terminal whose reader stops blocks a write."""
        # Not a `Queue`: its lock would block a signal handler that logs.
        self._queue = SimpleQueue()
        Thread(target=self._write_queued, args=(self._queue,), name="logs", daemon=True).start()
        atexit.register(self.drain)

    def write(self, text: str) -> None:
        if self._queue is None:
            self._write_now(text)
        elif self._queue.qsize() < MOST_QUEUED:
            self._queue.put(text)
        else:
            self._unqueued += 1

    def flush(self) -> None:
        """Nothing: loggers call it after each line, and must not wait."""

    def drain(self) -> None:
        """Wait until what is queued is written, at most `EXIT_SECONDS`."""
        if self._queue is not None:
            written = Event()
            self._queue.put(written)
            written.wait(EXIT_SECONDS)

    def _write_queued(self, queue: SimpleQueue[str | Event]) -> None:
        reported = 0
        while True:
            item = queue.get()
            if isinstance(item, Event):
                item.set()
                continue
            self._write_now(item)
            count = self._unqueued - reported
            if count and queue.empty():
                reported += count
                _log.warning("log.lines_dropped", count=count)

    def _write_now(self, text: str) -> None:
        # Not by `sys.stderr`: a blocked write would hold its lock, which the exit needs.
        rest = text.encode(errors="backslashreplace")
        try:
            while rest:
                rest = rest[os.write(STDERR, rest) :]
        except OSError:  # its reader has gone, or its disk is full
            self._unwritten += 1


_stderr = _StandardError()


def say(text: str, level: str = "info") -> None:
    """Print text for the operator, in order with the log."""
    prefix = journal_prefix(level)
    _stderr.write("".join(f"{prefix}{line}\n" for line in text.split("\n")))


def dropped_lines() -> int:
    """Lines of this process that standard error did not take."""
    return _stderr.dropped


_last_calls: list[Callable[[], None]] = []


def before_end(call: Callable[[], None]) -> None:
    """Have `end_at_once` make a call, which must be short and raise nothing."""
    _last_calls.append(call)


def end_at_once(status: int) -> NoReturn:
    """Write what is queued, then end this process from any thread, without any destructor."""
    for call in _last_calls:
        call()
    _stderr.drain()
    os._exit(status)


class LineLimit:
    """Admits `MOST_LINES` lines in a second, and logs a second later how many it left out.

    Args:
        event: of the line with their count.
    """

    def __init__(self, event: str) -> None:
        self._event = event
        self._until = 0.0
        self._count = 0
        self._left_out = 0
        self._reported = 0

    def admits(self) -> bool:
        now = time.monotonic()
        if now >= self._until:
            self._until, self._count = now + 1, 0
        self._count += 1
        if self._count <= MOST_LINES:
            return True
        self._left_out += 1
        if self._count == MOST_LINES + 1:
            timer = Timer(1.0, self._report)  # not the next line: none may come
            timer.daemon = True
            timer.start()
        return False

    def _report(self) -> None:
        count = self._left_out - self._reported
        self._reported += count
        if count:
            _log.warning(self._event, count=count)


def configure_logs(**always: str) -> None:
    """Set up structlog and the standard library's logging. Call once, in a `__main__`.

    Args:
        always: fields of every line, in every thread.
    """

    def add_always(_logger: object, _method: str, line: EventDict) -> EventDict:
        return {**always, **line}

    if not stat.S_ISREG(os.fstat(STDERR).st_mode):
        _stderr.start_thread()
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
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _stderr)),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    _configure_others(chain, renderers)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_ignored


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    _log.error("exception.uncaught", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:  # which ends a thread quietly
        name = args.thread and args.thread.name
        exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
        _log.error("exception.uncaught", thread=name, exc_info=exc_info)


def _log_ignored(args: sys.UnraisableHookArgs) -> None:
    exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
    where = getattr(args.object, "__qualname__", type(args.object).__qualname__)
    _log.error("exception.ignored", where=where, exc_info=exc_info)


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
        _render,
    ]
    return structlog.processors.TimeStamper(fmt="iso", utc=True), renderers


_render_json = structlog.processors.JSONRenderer()


def _render(logger: object, method: str, line: EventDict) -> str:
    return journal_prefix(line["level"]) + cast("str", _render_json(logger, method, line))


def _configure_others(chain: list[Processor], renderers: list[Processor]) -> None:
    """Lines of libraries, which use `logging`, look as ours do."""
    handler = logging.StreamHandler(cast("TextIO", _stderr))
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
    for name in ("rq.worker", "uvicorn", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns of each request that is no HTTP; its errors are not the clients' doing.
    limit = LineLimit("http.invalid_more")
    logging.getLogger("uvicorn.error").addFilter(
        lambda line: line.levelno != logging.WARNING or limit.admits()
    )
    # It warns of malformed forms, which the client gets as an error.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def _add_span(_logger: object, _method: str, line: EventDict) -> EventDict:
    context = get_current_span().get_span_context()
    if context.is_valid:
        line["trace_id"] = format_trace_id(context.trace_id)
        line["span_id"] = format_span_id(context.span_id)
    return line
