"""What signals do to the processes, however many of them come and however they were started."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import COMMAND, STOP_SECONDS, Stack, eventually
from tests.support.up import environ

A_WHILE_SECONDS = 0.5
"""A process that heeds a signal begins to stop sooner."""
IGNORING = ("sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh")
"""Runs a command as `nohup` and the `&` of a script do."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, engine="fake", port="0") as stack:
        yield stack


def told_to_stop(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    return process.wait(STOP_SECONDS)


def test_up_under_nohup_survives_its_terminal(tmp_path: Path) -> None:
    log = tmp_path / "up.log"
    with log.open("w") as output:
        up = subprocess.Popen(
            ["/usr/bin/nohup", COMMAND, "up", "--port", "0", "--data-dir", str(tmp_path / "data")],
            env=environ(MOCHI_ENGINE="fake"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    eventually(lambda: "Ready on" in log.read_text())
    up.send_signal(signal.SIGHUP)
    time.sleep(A_WHILE_SECONDS)
    assert "Stopping" not in log.read_text()
    assert told_to_stop(up) == 0


@pytest.mark.parametrize("package", ["server", "worker"])
def test_gateways_and_workers_leave_signals_alone_that_were_ignored_before(
    stack: Stack, package: str
) -> None:
    if package == "server":
        stack.start_gateway(within=IGNORING)
    else:
        stack.start_worker(within=IGNORING)
    (process,) = stack.processes
    time.sleep(A_WHILE_SECONDS)  # its handlers are in place
    for number in (signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
    time.sleep(A_WHILE_SECONDS)
    assert process.poll() is None
    assert "stopp" not in stack.log_of(process)
    assert told_to_stop(process) == 0
