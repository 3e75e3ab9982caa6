"""The units of systemd: valid, hardened, watched, and patient enough to load and to drain."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from server.app import OUTPUTS_PATIENCE_SECONDS
from server.settings import ServerSettings
from server.supervisor.children import REQUEUE_SECONDS
from tests.support.stack import COMMAND
from worker.broker.embedded import START_SECONDS, STOP_SECONDS
from worker.process.systemd import BEAT_SECONDS
from worker.runtime.heartbeat import LONGEST_BEAT_SECONDS
from worker.settings import WorkerSettings

FOLDER = Path(__file__).parents[3] / "docker" / "systemd"
INSTALLED = "/opt/mochi/bin/mochi-server"
MOST_EXPOSURE = 20
"""Tenths of systemd's score of 0 (safest) to 10."""


@pytest.fixture(params=sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit as it is once the command is installed."""
    shipped: Path = request.param
    path = tmp_path / shipped.name
    path.write_text(shipped.read_text().replace(INSTALLED, COMMAND))
    return path


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize(
    "check", [["verify"], ["security", "--offline=true", f"--threshold={MOST_EXPOSURE}"]], ids=str
)
def test_systemd_accepts_a_unit_and_finds_it_hardened(unit: Path, check: list[str]) -> None:
    command = ["/usr/bin/systemd-analyze", "--no-pager", *check, str(unit)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stderr == ""


def test_a_unit_signals_the_main_process_alone_and_waits_for_the_drain(unit: Path) -> None:
    assert value(unit, "KillMode") == "mixed"
    drain = ServerSettings.model_fields["drain_seconds"].default
    assert int(value(unit, "TimeoutStopSec")) > drain + REQUEUE_SECONDS + 2 * STOP_SECONDS


def test_a_unit_waits_for_the_model_however_long_it_loads(unit: Path) -> None:
    assert (value(unit, "Type"), value(unit, "TimeoutStartSec")) == ("notify", "infinity")


def test_the_watchdog_waits_longer_than_a_sign_of_life_of_a_sound_process_takes(unit: Path) -> None:
    stall = WorkerSettings.model_fields["stall_seconds"].default
    longest = {
        "mochi-gateway.service": OUTPUTS_PATIENCE_SECONDS,
        "mochi-server.service": START_SECONDS,  # of its broker, after a death
        # Where native code holds Python's lock; the worker then ends itself, and shows where.
        "mochi-worker@.service": stall + LONGEST_BEAT_SECONDS,
    }
    assert int(value(unit, "WatchdogSec")) > longest[unit.name] + BEAT_SECONDS


def value(unit: Path, name: str) -> str:
    """Of the one line that sets `name`."""
    lines = [line.partition("=") for line in unit.read_text().splitlines()]
    (found,) = (text for key, _, text in lines if key == name)
    return found
