"""How the process of a worker ends, whatever ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services.collector import collector

PROGRAM = """
import atexit, os, threading
import worker.__main__ as entry
from worker.process.logs import end_at_once

def fail(*_):
    raise {error}

def end_from_a_thread(*_, tracer, **__):
    tracer.start_span("a run").end()
    ending = threading.Thread(target=end_at_once, args=(75,))
    ending.start()
    ending.join()

atexit.register(os.abort)  # as Python does at its exit where a thread is at work in torch
entry.{replaced}
entry.main()
"""


def ended(
    folder: Path, redis_url: str, replaced: str, error: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    own = {"MOCHI_ENGINE": "fake", "MOCHI_REDIS_URL": redis_url, "MOCHI_DATA_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM.format(replaced=replaced, error=error or "OSError")],
        env={name: value for name, value in os.environ.items() if "MOCHI_" not in name}
        | own
        | variables,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("error", "status", "logged"),
    [
        ("RuntimeError('unforeseen')", os.EX_TEMPFAIL, ["exception.uncaught", "unforeseen"]),
        ("SystemExit", os.EX_TEMPFAIL, ["exception.uncaught"]),
        ("KeyboardInterrupt", 130, []),
    ],
)
def test_an_error_while_loading_ends_it_without_the_exit_of_python(
    tmp_path: Path, redis_url: str, error: str, status: int, logged: list[str]
) -> None:
    end = ended(tmp_path, redis_url, "build_engine = fail", error)
    assert end.returncode == status, end.stderr
    assert all(text in end.stderr for text in logged)


def test_a_thread_that_ends_it_loses_no_spans(tmp_path: Path, redis_url: str) -> None:
    with collector() as told:
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": told.endpoint}
        end = ended(tmp_path, redis_url, "work = end_from_a_thread", **endpoint)
        assert end.returncode == os.EX_TEMPFAIL, end.stderr
        assert told.named("a run")
