"""The limit of open files, of which each client of a gateway takes one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.stack import Stack, eventually
from tests.support.wire import connect


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.01") as stack:
        yield stack


def limited(stack: Stack, limits: str) -> str:
    """All that a gateway says with these limits of `ulimit`, once it answers."""
    within = ["sh", "-c", f'ulimit {limits}; exec "$@"', "sh"]
    gateway = stack.start("server", environ={"MOCHI_PORT": "0"}, within=within)
    said = eventually(lambda: stack.log_of(gateway).partition('"url": "')[2])
    stack.url = said.partition('"')[0]
    eventually(lambda: "http" in stack.url and stack.http().get("/healthz").is_success)
    assert psutil.Process(gateway.pid).is_running()
    return stack.log_of(gateway)


def test_a_gateway_takes_more_clients_than_the_soft_limit_of_open_files(stack: Stack) -> None:
    assert "files.few" not in limited(stack, "-Sn 64")
    clients = [connect(stack.url) for _ in range(100)]
    assert stack.http().get("/version").is_success
    for client in clients:
        client.close()


def test_a_hard_limit_that_is_low_is_named_with_the_remedy(stack: Stack) -> None:
    said = limited(stack, "-n 128")
    assert '"open_files": 128' in said
    assert "Raise the hard limit of open files to 1024 or more" in said
