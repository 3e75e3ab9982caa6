"""`mochi-server worker --workers 2`: a worker on each card of a machine or container."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.stack import Stack, eventually, start_command


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A broker and a gateway, without workers."""
    with Stack(tmp_path, engine="fake") as stack:
        stack.start_gateway()
        yield stack


@pytest.fixture
def pool(stack: Stack) -> Iterator[subprocess.Popen[bytes]]:
    log = stack.folder / "pool.log"
    process = start_command(["worker", "--workers", "2"], stack.environ, log, log)
    yield process
    process.kill()
    process.wait()


def workers(pool: subprocess.Popen[bytes]) -> dict[int, str]:
    """The device of each live worker, by its process."""
    return {
        child.pid: child.environ().get("MOCHI_DEVICE", "")
        for child in psutil.Process(pool.pid).children()
        if child.status() != psutil.STATUS_ZOMBIE
    }


def test_each_card_has_a_worker_and_one_that_is_killed_is_replaced_on_its_card(
    stack: Stack, pool: subprocess.Popen[bytes]
) -> None:
    eventually(lambda: stack.live_workers() == 2)
    first = workers(pool)
    assert sorted(first.values()) == ["cuda:0", "cuda:1"]
    killed = next(iter(first))
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: stack.live_workers() == 3)  # the killed one is struck off later
    assert killed not in workers(pool)
    assert sorted(workers(pool).values()) == ["cuda:0", "cuda:1"]


def test_sigterm_finishes_both_videos_and_leaves_no_worker(
    stack: Stack, pool: subprocess.Popen[bytes]
) -> None:
    eventually(lambda: stack.live_workers() == 2)
    client = stack.http()
    body = {"prompt": "a cat", "steps": 10}
    ids = [client.post("/v2/mochi-1", json=body).json()["request_id"] for _ in range(2)]
    eventually(lambda: all(stack.record(one)["status"] == "PROCESSING" for one in ids))
    left = workers(pool)
    pool.terminate()
    assert pool.wait(60) == 0
    assert [stack.record(one)["status"] for one in ids] == ["COMPLETED", "COMPLETED"]
    assert not any(psutil.pid_exists(pid) for pid in left)


def test_a_setting_that_a_worker_rejects_ends_them_all(stack: Stack) -> None:
    log = stack.folder / "rejected.log"
    settings = {"MOCHI_ENGINE": "mochi", "MOCHI_WEIGHTS": str(stack.folder / "nonesuch")}
    command = ["worker", "--workers", "2"]
    process = start_command(command, stack.environ | settings, log, log)
    assert process.wait(120) == os.EX_CONFIG
    assert "nonesuch" in log.read_text()


def test_without_a_broker_the_remedy_is_told(stack: Stack) -> None:
    ended = stack.run("worker", "--workers", "2", MOCHI_REDIS_URL="")
    assert ended.returncode == os.EX_CONFIG
    assert "MOCHI_REDIS_URL is empty" in ended.stderr
