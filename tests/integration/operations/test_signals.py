"""What signals do to the processes, however many of them come and however they were started."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx2
import psutil
import pytest
from typing_extensions import override

from tests.support.stack import APART_SECONDS, COMMAND, STOP_SECONDS, Stack, eventually
from tests.support.up import Up, environ
from worker.store import keyspace

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


class Blocking(Thread):
    """A blocking call in a thread; `answer` when it has ended."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__()
        self.answer = httpx2.Response(0)
        self._url, self._key = url, key
        self.start()

    @override
    def run(self) -> None:
        self.answer = httpx2.post(
            f"{self._url}/v1/mochi-1",
            headers={"x-api-key": self._key},
            json={"prompt": "a pond", "frames": 1, "steps": 75},
            timeout=60,
        )


def test_a_signal_to_all_processes_of_up_ends_no_blocking_call(tmp_path: Path) -> None:
    """As systemd and pm2 send it: to the broker, too."""
    with Up(tmp_path / "data") as up:
        call = Blocking(up.url, (up.folder / "key").read_text().strip())
        eventually(lambda: "run.started" in up.log.read_text())
        for process in (psutil.Process(up.process.pid), *up.family()):
            process.terminate()
        call.join()
        assert up.process.wait(60) == 0
    assert call.answer.headers["content-type"] == "video/mp4", call.answer.text


def test_up_may_be_late_to_tell_processes_that_had_the_signal_themselves(tmp_path: Path) -> None:
    """As when its broker takes long to start again."""
    with Up(tmp_path / "data", MOCHI_FAKE_STEP_SECONDS="0.05") as up:
        call = Blocking(up.url, (up.folder / "key").read_text().strip())
        eventually(lambda: "run.started" in up.log.read_text())
        for process in up.family():
            if "valkey" not in process.name():
                process.terminate()
        time.sleep(APART_SECONDS)
        up.process.terminate()
        call.join()
        assert up.process.wait(60) == 0
    assert call.answer.headers["content-type"] == "video/mp4", call.answer.text


def test_a_blocking_call_learns_its_id_from_a_gateway_that_must_stop_at_once(stack: Stack) -> None:
    stack.start_worker(fake_step_seconds="1", drain_seconds="0")
    call = Blocking(stack.start_gateway(), stack.key())
    eventually(lambda: "run.started" in stack.logs())
    gateway = stack.processes[-1]
    gateway.terminate()
    time.sleep(APART_SECONDS)
    gateway.terminate()
    call.join()
    assert call.answer.status_code == 504
    (request_id,) = stack.redis.zrange(keyspace.LEASES, 0, -1)
    assert call.answer.json()["request_id"] == request_id
    assert gateway.wait(STOP_SECONDS) == 0
    assert "Traceback" not in stack.log_of(gateway)


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
