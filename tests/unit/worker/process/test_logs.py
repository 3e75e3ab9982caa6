"""Lines that others write, in a process of its own: logging is the whole process's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

from worker.process.logs import MOST_LINES

SCRIPT = """
import logging, threading, warnings
import structlog
from worker.process.logs import configure_logs

configure_logs(worker="ann")
with structlog.contextvars.bound_contextvars(request_id="a-request", attempt=2):
    warnings.warn("a library's")
    logging.getLogger("diffusers").error("another's")
    structlog.get_logger().info("ours")
    thread = threading.Thread(target=lambda: structlog.get_logger().info("of another thread"))
    thread.start()
    thread.join()
structlog.get_logger().info("later")
"""


def test_every_log_line_in_a_run_names_the_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    warning, foreign, ours, threads, later = map(json.loads, done.stderr.splitlines())
    assert "a library's" in warning["event"]
    assert (foreign["event"], ours["event"]) == ("another's", "ours")
    for line in (warning, foreign, ours):
        assert (line["worker"], line["request_id"], line["attempt"]) == ("ann", "a-request", 2)
    for line in (threads, later):
        assert line["worker"] == "ann"
        assert "request_id" not in line


UNCAUGHT = """
import sys, threading
from worker.process.logs import configure_logs

class Odd:
    def __del__(self):
        raise ValueError("in a finalizer")

configure_logs()
Odd()
for error in (OSError("in a thread"), SystemExit()):
    def fail():
        raise error
    thread = threading.Thread(target=fail, name="spare")
    thread.start()
    thread.join()
raise KeyError("in the end")
"""


def test_an_exception_that_nobody_catches_is_a_line_of_the_log() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    ignored, in_thread, last = map(json.loads, done.stderr.splitlines())
    assert (ignored["event"], ignored["where"]) == ("exception.ignored", "Odd.__del__")
    assert "ValueError: in a finalizer" in ignored["exception"]
    assert (in_thread["event"], in_thread["thread"]) == ("exception.uncaught", "spare")
    assert "OSError: in a thread" in in_thread["exception"]
    assert last["event"] == "exception.uncaught"
    assert "KeyError: 'in the end'" in last["exception"]


FLOOD = f"""
import logging, time
from worker.process.logs import configure_logs

configure_logs()
log = logging.getLogger("uvicorn.error")
for _ in range({MOST_LINES + 7}):
    log.warning("Invalid HTTP request received.")
log.error("ours")
time.sleep(1.5)
"""


def test_lines_that_clients_cause_are_limited_and_those_left_out_are_counted_soon() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FLOOD], capture_output=True, text=True, check=True, timeout=60
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    events = Counter(line["event"] for line in lines)
    assert events.pop("ours") == 1
    assert events == {"Invalid HTTP request received.": MOST_LINES, "http.invalid_more": 1}
    assert lines[-1]["count"] == 7


UNREAD = """
import os, sys
import structlog
from worker.process.logs import configure_logs

configure_logs()
structlog.get_logger().error("lost")
sys.stdout.write("works on")
sys.stdout.flush()
os._exit(0)  # at its exit Python itself complains of such a stream
"""


def test_a_log_that_is_no_longer_read_stops_no_work() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", UNREAD], stdout=subprocess.PIPE, stderr=write, check=True, timeout=60
    )
    os.close(write)
    assert done.stdout == b"works on"


STOPPED = """
import logging, os, sys
import structlog
from worker.process import logs
from worker.process.logs import configure_logs, dropped_lines

configure_logs()
logs.MOST_QUEUED = 100
for _ in range(1_000):
    structlog.get_logger().info("ours")
    logging.getLogger("diffusers").error("another's")
print(dropped_lines(), flush=True)
sys.stdin.readline()  # until the reader goes on
structlog.get_logger().info("last")
"""


def _with_pipe(script: str) -> tuple[subprocess.Popen[str], int]:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=write,
        text=True,
    )
    os.close(write)
    return process, read


def test_a_reader_that_stops_holds_up_no_work_and_learns_how_many_lines_it_missed() -> None:
    process, read = _with_pipe(STOPPED)
    assert process.stdout
    dropped = int(process.stdout.readline())
    assert dropped > 0
    lines: list[dict[str, Any]] = []
    with open(read) as reader:  # noqa: PTH123 (a descriptor)
        while sum(line.get("count", 0) for line in lines) < dropped:
            lines.append(json.loads(reader.readline()))
        process.communicate("\n", timeout=60)
        lines += map(json.loads, reader)
    assert lines[-1]["event"] == "last"
    written = [line for line in lines if "count" not in line]
    assert len(written) + dropped == 2 * 1_000 + 1


def test_a_process_whose_log_is_not_read_ends() -> None:
    process, read = _with_pipe(STOPPED)
    process.communicate("\n", timeout=60)
    assert process.returncode == 0
    os.close(read)


OF_A_SERVICE = """
import logging, os, sys
import structlog
from worker.process.logs import configure_logs, say

stream = os.fstat(2)
os.environ["JOURNAL_STREAM"] = sys.argv[1] or f"{stream.st_dev}:{stream.st_ino}"
configure_logs()
structlog.get_logger().info("a step")
structlog.get_logger().warning("a danger")
try:
    raise ValueError("of us")
except ValueError:
    structlog.get_logger().exception("a bug")
logging.getLogger("diffusers").warning("a library's")
logging.getLogger("diffusers").critical("the end")
say("Set it.\\nOr unset it.", "error")
"""


def _with_stream(stream: str) -> list[str]:
    command = [sys.executable, "-c", OF_A_SERVICE, stream]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stderr.splitlines()


def test_lines_in_the_journal_have_priorities_beside_their_json() -> None:
    *logged, first, second = _with_stream("")
    priorities = [line.partition("{")[0] for line in logged]
    assert priorities == ["", "<4>", "<3>", "<4>", "<2>"]
    events = [json.loads(line.removeprefix(priorities.pop(0)))["event"] for line in logged]
    assert events == ["a step", "a danger", "a bug", "a library's", "the end"]
    assert (first, second) == ("<3>Set it.", "<3>Or unset it.")


def test_lines_that_do_not_go_to_the_journal_have_no_priority() -> None:
    """A child of a service may write to a file, and inherits the variable."""
    *logged, first, second = _with_stream("1:2")
    assert all(json.loads(line) for line in logged)
    assert (first, second) == ("Set it.", "Or unset it.")
