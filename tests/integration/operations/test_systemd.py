"""What gateway, worker and `up` tell systemd, from their start to their end."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.services.systemd import WATCHDOG_SECONDS, ServiceManager
from tests.support.stack import COMMAND, STOP_SECONDS, Stack, eventually, start_command
from tests.support.up import Up, environ

IN_THE_JOURNAL = ("sh", "-c", 'JOURNAL_STREAM=$(stat -Lc %d:%i /dev/stderr) exec "$@"', "sh")
POND = {"prompt": "a pond", "frames": 1, "steps": 75}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(tmp_path) as manager:
        yield manager


@pytest.fixture
def stack(tmp_path: Path, manager: ServiceManager) -> Iterator[Stack]:
    """Whose processes systemd starts; they answer and run as soon as they say so."""
    with Stack(tmp_path / "data", engine="fake", port="0") as stack:
        stack.variables = manager.environ
        yield stack


def beats_go_on(manager: ServiceManager) -> None:
    before = manager.beats()
    eventually(lambda: manager.beats() > before + 1)


def test_a_gateway_is_ready_when_it_serves_and_alive_while_its_event_loop_runs(
    stack: Stack, manager: ServiceManager
) -> None:
    gateway = stack.start("server")
    eventually(lambda: "READY=1" in manager.told())
    assert "gateway.listening" in stack.log_of(gateway)
    stack.broker.stop()
    beats_go_on(manager)  # a restart would not bring the broker back
    gateway.send_signal(signal.SIGSTOP)
    while psutil.Process(gateway.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    before = manager.beats()
    time.sleep(2 * WATCHDOG_SECONDS)
    assert manager.beats() == before
    gateway.send_signal(signal.SIGCONT)
    gateway.terminate()
    assert gateway.wait(STOP_SECONDS) == 0
    assert manager.statuses() == ["Serving", "Draining", "Stopping"]


def test_a_worker_is_ready_when_it_has_loaded_and_alive_while_it_beats(
    stack: Stack, manager: ServiceManager
) -> None:
    worker = stack.start_worker()
    eventually(lambda: "READY=1" in manager.told())
    assert manager.statuses()[0] == "Loading the model"
    assert "worker.ready" in stack.log_of(worker)
    stack.broker.stop()
    beats_go_on(manager)
    stack.broker.start()
    worker.terminate()
    assert worker.wait(STOP_SECONDS) == 0
    assert "STOPPING=1" in manager.told()


def test_workers_on_several_cards_are_ready_when_one_has_loaded(
    stack: Stack, manager: ServiceManager
) -> None:
    log = stack.folder / "pool.log"
    pool = start_command(["worker", "--workers", "2"], stack.environ | manager.environ, log, log)
    try:
        eventually(lambda: "READY=1" in manager.told())
        assert stack.live_workers() > 0
        pool.terminate()
        assert pool.wait(STOP_SECONDS) == 0
    finally:
        pool.kill()
        pool.wait()
    assert manager.statuses()[0] == "Loading the model"
    assert manager.statuses()[-1] == "Draining"


def test_a_drained_worker_stops_after_its_request_which_has_no_time_limit(
    stack: Stack, manager: ServiceManager
) -> None:
    """From STOPPING=1 on, systemd kills after TimeoutStopSec."""
    stack.variables = {}
    stack.start_gateway()
    stack.variables = manager.environ
    worker = stack.start_worker()
    stack.sdk().submit_async("mochi-1", **POND)
    eventually(lambda: "run.started" in stack.log_of(worker))
    assert stack.run("workers", "drain", "--all", "--no-wait").returncode == 0
    eventually(lambda: "Draining" in manager.statuses())
    beats_go_on(manager)
    assert "STOPPING=1" not in manager.told()
    assert worker.wait(STOP_SECONDS) == 0
    assert "run.completed" in stack.log_of(worker)
    assert manager.told()[-2:] == ["STOPPING=1", "STATUS=Stopping"]


def test_up_is_ready_with_a_worker_and_speaks_for_all_its_processes(
    tmp_path: Path, manager: ServiceManager
) -> None:
    with Up(tmp_path / "data", **manager.environ) as up:
        eventually(lambda: "READY=1" in manager.told())
        assert "Ready on" in up.log.read_text()
        beats_go_on(manager)
        up.process.terminate()
        assert up.process.wait(STOP_SECONDS) == 0
    assert manager.statuses() == [
        *("Loading the model", f"Ready on {up.url}/v1", "Draining", "Stopping"),
    ]


def test_the_journal_has_the_reason_of_a_failed_start_among_its_errors() -> None:
    command = [*IN_THE_JOURNAL, COMMAND, "up"]
    up = subprocess.run(
        command,
        env=environ(MOCHI_DRAIN_SECONDS="soon"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert up.returncode == 78
    assert "MOCHI_DRAIN_SECONDS" in up.stderr
    assert all(line.startswith("<3>") for line in up.stderr.splitlines()), up.stderr
