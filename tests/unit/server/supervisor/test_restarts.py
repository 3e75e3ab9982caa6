"""When `up` starts again what has died."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from server.supervisor import children
from server.supervisor.children import Child
from tests.support.services.brokers import free_port
from tests.support.stack import eventually

HANG_SECONDS = 3.0
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="signs of life are Linux's")


@contextmanager
def child(folder: Path, code: str) -> Iterator[Child]:
    """A process that runs `code`."""
    (folder / "doomed.py").write_text(code)
    environ = os.environ | {"PYTHONPATH": str(folder)}
    doomed = Child("doomed", environ, hang_seconds=HANG_SECONDS, device="cuda:3")
    yield doomed
    doomed.kill()


def deaths(doomed: Child, count: int) -> list[float]:
    """The pauses after the first deaths."""
    pauses: list[float] = []

    def watch() -> bool:
        with capture_logs() as logs:
            assert doomed.watch()
        pauses.extend(entry["again_in"] for entry in logs if entry["event"] == "process.died")
        return len(pauses) == count

    eventually(watch)
    return pauses


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "RESTART_SECONDS", 0.01)
    monkeypatch.setattr(children, "LONGEST_RESTART_SECONDS", 0.03)
    monkeypatch.setattr(children, "STACK_SECONDS", 1.0)


def test_what_dies_at_its_start_is_started_again_after_longer_and_longer(tmp_path: Path) -> None:
    with child(tmp_path, "raise SystemExit(1)") as doomed:
        assert deaths(doomed, 4) == [0.01, 0.02, 0.03, 0.03]


def test_what_has_run_for_long_is_started_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "STEADY_SECONDS", 0.0)
    with child(tmp_path, "raise SystemExit(1)") as doomed:
        assert deaths(doomed, 3) == [0.01, 0.01, 0.01]


def test_what_was_drained_is_started_again_and_what_rejects_its_settings_is_not(
    tmp_path: Path,
) -> None:
    with capture_logs() as logs, child(tmp_path, "raise SystemExit(0)") as drained:
        eventually(lambda: drained.watch() and len(logs) >= 2)
    assert {entry["event"] for entry in logs} == {"process.ended"}
    with child(tmp_path, f"raise SystemExit({os.EX_CONFIG})") as wrong:
        eventually(lambda: not wrong.watch())
        pid = wrong.pid
        assert not wrong.watch()
        assert wrong.pid == pid


def test_the_next_process_does_not_start_in_a_folder_that_has_been_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    place = tmp_path / "place"
    code = f"import os, pathlib\npathlib.Path({str(place)!r}).write_text(os.getcwd())"
    with child(tmp_path, code):
        eventually(lambda: place.is_file() and place.read_text() == "/")


def until_dead(watched: Child) -> list[MutableMapping[str, Any]]:
    """Watch it until it has died; the log lines until then."""
    lines: list[MutableMapping[str, Any]] = []

    def look() -> bool:
        with capture_logs() as logs:
            assert watched.watch()
        lines.extend(logs)
        return "process.died" in [line["event"] for line in lines]

    eventually(look)
    return lines


@ON_LINUX
def test_a_gateway_that_hangs_is_killed_and_started_again(redis_url: str) -> None:
    port = free_port()
    environ = {"MOCHI_REDIS_URL": redis_url, "MOCHI_PORT": str(port)}

    def answers() -> bool:
        with suppress(httpx2.HTTPError):
            return httpx2.get(f"http://127.0.0.1:{port}/healthz", timeout=0.5).is_success
        return False

    gateway = Child("server", os.environ | environ, hang_seconds=HANG_SECONDS)
    try:
        eventually(lambda: gateway.watch() and answers())
        os.kill(gateway.pid, signal.SIGSTOP)
        assert not answers()
        hung, died = until_dead(gateway)
        assert (hung["event"], hung["silent_seconds"]) == ("process.hung", HANG_SECONDS)
        assert died["status"] == -signal.SIGKILL  # a stopped process prints no stack
        eventually(lambda: gateway.watch() and answers())
    finally:
        gateway.kill()


@ON_LINUX
def test_a_process_that_hangs_prints_its_stack_and_the_log_names_device_and_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hangs = (
        "import os, time\nfrom worker.process.systemd import Notifier\n"
        "def waits_for_ever():\n    time.sleep(600)\n"
        "Notifier.take(os.environ).serving('Serving')\nwaits_for_ever()"
    )
    with child(tmp_path, hangs) as hung:
        pid = hung.pid
        lines = until_dead(hung)
    assert [(line["event"], line["device"], line["pid"]) for line in lines] == [
        ("process.hung", "cuda:3", pid),
        ("process.died", "cuda:3", pid),
    ]
    assert lines[1]["status"] == -signal.SIGABRT
    assert "in waits_for_ever" in capfd.readouterr().err


@ON_LINUX
def test_what_gives_signs_of_life_or_has_given_none_yet_is_left_alone(tmp_path: Path) -> None:
    """Loading a model takes as long as it takes."""
    alive = (
        "import os, time\nfrom worker.process.systemd import Notifier\n"
        "notifier = Notifier.take(os.environ)\n"
        "while True:\n    notifier.serving('Serving')\n    time.sleep(0.1)"
    )
    for code in (alive, "import time\ntime.sleep(600)"):
        with child(tmp_path, code) as spared, capture_logs() as logs:
            pid, until = spared.pid, time.monotonic() + 2 * HANG_SECONDS
            while time.monotonic() < until:
                assert spared.watch()
                time.sleep(0.05)
            assert (spared.pid, logs) == (pid, [])
