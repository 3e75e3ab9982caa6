"""A log that is not read: `up | less`, a blocked log driver."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.support.services.brokers import free_port
from tests.support.stack import STOP_SECONDS, Stack, eventually, start_command
from tests.support.up import environ
from tests.support.wire import SOON_SECONDS

PIPE_BYTES = 4096
"""The smallest pipe there is: a dozen lines fill it."""


@contextmanager
def unread(folder: Path, command: str, variables: Mapping[str, str]) -> Iterator[str]:
    """The URL of a command that has started, and must end, while its log is not read."""
    log = folder / "log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    port = str(free_port())
    process = start_command([command, "--port", port], variables, log, log)
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _is_ready(url), seconds=STOP_SECONDS)
        yield url
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0
    finally:
        os.close(reader)  # frees a process that waits for it
        process.terminate()
        process.wait(STOP_SECONDS)


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=1).status_code in (200, 503)
    except httpx2.HTTPError:
        return False


def refuse(url: str) -> None:
    """Cause more lines of log than the pipe holds."""
    with httpx2.Client(base_url=url, timeout=SOON_SECONDS) as client:
        for number in range(40):
            client.get(f"/{number:0100}", headers={"host": "odd name"})
        assert client.get("/healthz").is_success


def test_a_gateway_answers_and_stops_while_its_log_is_not_read(tmp_path: Path) -> None:
    with (
        Stack(tmp_path / "data", engine="fake") as stack,
        unread(tmp_path, "gateway", stack.environ) as url,
    ):
        refuse(url)


def test_up_answers_and_stops_while_its_log_is_not_read(tmp_path: Path) -> None:
    variables = environ(MOCHI_ENGINE="fake", MOCHI_DATA_DIR=str(tmp_path / "data"))
    with unread(tmp_path, "up", variables) as url:
        refuse(url)
