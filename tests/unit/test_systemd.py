"""The units of systemd: valid, hardened, and patient enough to drain."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from server.settings import ServerSettings
from server.supervisor import REQUEUE_SECONDS
from tests.support.stack import COMMAND
from worker.broker.embedded import STOP_SECONDS

FOLDER = Path(__file__).parents[2] / "docker" / "systemd"
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
    lines = unit.read_text().splitlines()
    assert "KillMode=mixed" in lines
    (patience,) = (line for line in lines if line.startswith("TimeoutStopSec="))
    drain = ServerSettings.model_fields["drain_seconds"].default
    assert int(patience.partition("=")[2]) > drain + REQUEUE_SECONDS + 2 * STOP_SECONDS
