"""F27: everything on one machine is ended, in order or not, and started again on its folder."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.support.stack import eventually
from tests.support.up import Up, gone, run
from worker.broker.connection import connect_briefly
from worker.broker.embedded import EmbeddedBroker
from worker.store import keyspace

LONG = 75
"""Steps: a second and a half."""

Figure = Callable[[str], None]
Times = Callable[[int, int], int]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with Up(tmp_path / "data") as up:
        yield up


@pytest.fixture
def again() -> Iterator[ExitStack]:
    """Ends the servers that a test starts."""
    with ExitStack() as stack:
        yield stack


def submit(up: Up) -> str:
    """The id of a request that runs."""
    with up.client() as client:
        job = client.submit_async("mochi-1", prompt="a pond", frames=1, steps=LONG)
    request_id = str(job.request_id)
    eventually(lambda: status(up, request_id) == "PROCESSING")
    return request_id


def status(up: Up, request_id: str) -> str:
    headers = {"x-api-key": (up.folder / "key").read_text().strip()}
    answer = httpx2.get(f"{up.url}/v2/requests/{request_id}", headers=headers)
    return str(answer.json().get("status"))


def kept(folder: Path, request_id: str) -> dict[str, str]:
    """The record, as it is on disk when nothing runs."""
    broker = EmbeddedBroker(folder)
    broker.start()
    try:
        with connect_briefly(broker.url) as redis:
            record: dict[str, str] = redis.hgetall(keyspace.record(request_id))
            return record
    finally:
        broker.stop()


def broker_of(family: list[psutil.Process]) -> psutil.Process:
    (broker,) = (process for process in family if "valkey" in process.name())
    return broker


@pytest.mark.parametrize("sent", ["ctrl-c", "sigterm"])
def test_f27_up_that_is_told_to_stop_finishes_what_runs_and_leaves_no_process(
    up: Up, sent: str
) -> None:
    family = up.family()
    assert len(family) == 3
    request_id = submit(up)
    with up.client() as client:
        client.submit_async("mochi-1", prompt="a pond", frames=1, steps=LONG)
    if sent == "ctrl-c":
        os.killpg(up.process.pid, signal.SIGINT)  # as a terminal does
    else:
        up.process.terminate()
    assert up.process.wait(60) == 0
    assert gone(family)
    record = kept(up.folder, request_id)
    assert (record["status"], record["attempt"]) == ("COMPLETED", "1")
    assert "1 request waits for the next start." in up.log.read_text()


@pytest.mark.timeout(600)
def test_f27_after_kill_9_the_next_up_takes_the_broker_over_with_every_request(
    up: Up, again: ExitStack, figure: Figure, times: Times
) -> None:
    """Also when the killed one's gateway and worker have not ended yet."""
    seconds = []
    broker = broker_of(up.family())  # no child of those that take it over
    for turn in range(times(1, 6)):
        request_id = submit(up)
        parts = [process for process in up.family() if process != broker]
        up.process.kill()
        assert up.process.wait() == -signal.SIGKILL
        if turn % 2:
            eventually(lambda: gone(parts))
        assert not gone([broker])
        died = time.monotonic()
        up = again.enter_context(Up(up.folder))
        seconds.append(time.monotonic() - died)
        assert not gone([broker])
        eventually(lambda: gone(parts))
        eventually(lambda: status(up, request_id) == "COMPLETED")
        assert len(up.family()) == 2
    family = up.family()
    up.process.terminate()
    assert up.process.wait(60) == 0
    assert gone([broker, *family])
    figure(f"F27: ready again {max(seconds):.1f} s after the kill at most, {len(seconds)} kills")


def test_f27_a_second_up_on_the_same_folder_is_refused_and_names_the_first(up: Up) -> None:
    family = up.family()
    # Its port is taken, too: the folder is looked at first.
    port = str(up.port)
    second = run("up", "--data-dir", str(up.folder), "--port", port, MOCHI_ENGINE="fake")
    assert second.returncode == 78
    assert f"in use by another mochi-server (pid {up.process.pid}, {up.url})" in second.stderr
    assert "a folder and a port of its own" in second.stderr
    assert up.is_ready()
    assert up.family() == family
