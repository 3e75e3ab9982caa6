"""`mochi-server top` and `workers list --json`, on a terminal and without one."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from redis import Redis
from rich.console import Console

from models.version import this_build
from server.cli.top import Picture, drawn
from tests.support.stack import COMMAND, PATIENCE_SECONDS, Stack, eventually
from worker.store import keyspace

POND = {"prompt": "a pond", "frames": 1, "steps": 75}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One request runs, for long, and two wait."""
    folder = tmp_path_factory.mktemp("top")
    with Stack(folder, engine="fake", fake_step_seconds="5", drain_seconds="0") as stack:
        stack.start_gateway()
        stack.start_worker()
        client = stack.http()
        client.post("/v2/mochi-1", json=POND)
        eventually(lambda: stack.redis.zcard("mochi:leases"))
        for _ in range(2):
            client.post("/v2/mochi-1", json=POND)
        yield stack


@pytest.fixture
def running(stack: Stack) -> str:
    """The id of what runs."""
    (leased,) = cast("list[str]", stack.redis.zrange("mochi:leases", 0, -1))
    return leased


def said(stack: Stack, *arguments: str) -> str:
    done = stack.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_picture_for_programs_has_queue_workers_and_what_is_next(
    stack: Stack, running: str
) -> None:
    picture = json.loads(said(stack, "top", "--once", "--json"))
    (worker,) = picture["workers"]
    assert (worker["request_id"], worker["state"]) == (running, "running")
    assert (worker["steps"], worker["engine"]["model"]) == (75, "light mock")
    assert 0 <= worker["run_seconds"] < PATIENCE_SECONDS
    assert (picture["waiting"], picture["running"]) == (2, 1)
    assert [(job["position"], job["frames"], job["steps"]) for job in picture["next"]] == [
        (1, 1, 75),
        (2, 1, 75),
    ]
    assert picture["oldest_waiting_seconds"] >= picture["next"][-1]["waited_seconds"] - 1
    workers = json.loads(said(stack, "workers", "list", "--json"))
    assert [(each["worker"], each["request_id"], each["version"]) for each in workers] == [
        (worker["worker"], running, this_build().version),
    ]


def test_without_a_terminal_one_picture_is_printed(stack: Stack, running: str) -> None:
    text = said(stack, "top")
    assert running in text
    assert "2 waiting" in text
    assert "0 completed, 0 failed, 0 cancelled, 0 blocked" in text
    assert "\x1b" not in text


def test_requests_that_were_cancelled_or_blocked_have_not_failed(redis: Redis) -> None:
    counts = {"completed": 8, "cancelled": 4, "content_blocked": 2, "timeout": 1}
    redis.hset(keyspace.METRICS, mapping={f"ended {end}": each for end, each in counts.items()})
    console = Console(width=200)
    with console.capture() as capture:
        console.print(drawn(Picture.taken(redis)))
    assert "8 completed, 1 failed, 4 cancelled, 2 blocked" in capture.get()


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, stack: Stack) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 80))
        self._before = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.process = subprocess.Popen(
            [COMMAND, "top"],
            env=stack.environ | {"TERM": "xterm", "COLUMNS": "80"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def wait_for(self, pattern: str) -> str:
        """What is shown, once it has that."""
        shown = ""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not re.search(pattern, shown, re.DOTALL):
            assert time.monotonic() < deadline, shown
            if select.select([self._ours], [], [], 0.1)[0]:
                shown += os.read(self._ours, 65_536).decode(errors="replace")
        return shown

    def type(self, key: str) -> None:
        os.write(self._ours, key.encode())

    def end(self) -> int:
        """The exit status; the terminal is as it was."""
        shown = self.wait_for(re.escape("\x1b[?1049l"))  # back from the alternate screen
        status = self.process.wait(PATIENCE_SECONDS)
        assert termios.tcgetattr(self._theirs) == self._before, shown
        return status


def test_on_a_terminal_it_is_renewed_until_q_is_typed(stack: Stack, running: str) -> None:
    with Terminal(stack) as terminal:
        terminal.wait_for(rf"2 waiting.*{running} +\d+/75 +\d+ s +denoising.*2 waiting")
        terminal.type("x")
        terminal.wait_for(running)
        terminal.type("xq")
        assert terminal.end() == 0


def test_ctrl_c_ends_it_in_peace(stack: Stack, running: str) -> None:
    with Terminal(stack) as terminal:
        terminal.wait_for(running)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0


def test_a_broker_that_goes_away_is_named_and_looked_for_again(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack, Terminal(stack) as terminal:
        terminal.wait_for("No live worker")
        assert json.loads(said(stack, "workers", "list", "--json")) == []
        stack.broker.stop()
        terminal.wait_for("broker")
        stack.broker.start()
        terminal.wait_for("No live worker")
        terminal.type("q")
        assert terminal.end() == 0
