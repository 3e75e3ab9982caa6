"""The workers of one machine, in whose place processes run that behave as their card tells."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.settings import ServerSettings
from server.supervisor import children
from server.supervisor.pool import WorkerPool
from tests.support.stack import eventually

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="signs of life are Linux's")
SERVES = """
import os, time
from socket import AF_UNIX, SOCK_DGRAM, socket
address = os.environ["NOTIFY_SOCKET"].replace("@", chr(0), 1)
while True:
    socket(AF_UNIX, SOCK_DGRAM).sendto(b"READY=1\\nWATCHDOG=1", address)
    time.sleep(0.1)
"""
REJECTS = f"raise SystemExit({os.EX_CONFIG})"
DIES = "raise SystemExit(1)"


class Cards:
    """Pools whose worker on each card runs the code given for it."""

    def __init__(self, folder: Path) -> None:
        self.alive = folder / "alive"
        self._folder = folder
        self._pools: list[WorkerPool] = []

    def pool(self, *codes: str) -> WorkerPool:
        for card, code in enumerate(codes):
            (self._folder / f"cuda:{card}").write_text(code)
        (self._folder / "worker.py").write_text(
            "import os, pathlib\n"
            f"code = pathlib.Path({str(self._folder)!r}, os.environ['MOCHI_DEVICE']).read_text()\n"
            "exec(code)\n"
        )
        settings = ServerSettings(workers=len(codes), alive_file=str(self.alive))
        pool = WorkerPool(settings, os.environ | {"PYTHONPATH": str(self._folder)})
        self._pools.append(pool)
        return pool

    def close(self) -> None:
        for pool in self._pools:
            for worker in pool.workers:
                worker.kill()


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cards]:
    monkeypatch.setattr(children, "RESTART_SECONDS", 0.01)
    cards = Cards(tmp_path)
    yield cards
    cards.close()


@ON_LINUX
def test_a_worker_that_rejects_its_card_is_left_down_and_the_others_go_on(cards: Cards) -> None:
    pool = cards.pool(SERVES, REJECTS)
    with capture_logs() as logs:
        eventually(lambda: pool.watch() and pool.workers[1].is_rejecting and pool.serving == 1)
        assert all(pool.watch() for _ in range(3))
    [entry] = logs
    assert (entry["event"], entry["device"]) == ("process.rejected", "cuda:1")
    assert entry["pid"] == pool.workers[1].pid


def test_the_pool_ends_when_every_worker_has_rejected_its_settings(cards: Cards) -> None:
    pool = cards.pool(REJECTS, REJECTS)
    with capture_logs() as logs:
        eventually(lambda: not pool.watch())
    assert sorted(entry["device"] for entry in logs) == ["cuda:0", "cuda:1"]


@ON_LINUX
def test_no_worker_serves_until_it_has_said_so(cards: Cards) -> None:
    pool = cards.pool("import time\ntime.sleep(600)", f"import time\ntime.sleep(1)\n{SERVES}")
    assert pool.watch()
    assert pool.serving == 0
    eventually(lambda: pool.watch() and pool.serving == 1)


@ON_LINUX
def test_the_file_of_the_health_check_is_touched_while_every_worker_serves(cards: Cards) -> None:
    pool = cards.pool(SERVES, SERVES)
    eventually(lambda: pool.watch() and cards.alive.exists())
    (cards.alive.parent / "cuda:1").write_text(DIES)
    os.kill(pool.workers[1].pid, signal.SIGKILL)
    eventually(lambda: pool.watch() and pool.serving == 1)
    cards.alive.unlink()
    for _ in range(20):
        assert pool.watch()
        time.sleep(0.01)
    assert not cards.alive.exists()


@ON_LINUX
def test_a_worker_that_was_left_down_does_not_make_the_others_unhealthy(cards: Cards) -> None:
    pool = cards.pool(SERVES, REJECTS)
    eventually(lambda: pool.watch() and pool.workers[1].is_rejecting)
    eventually(lambda: pool.watch() and cards.alive.exists())
