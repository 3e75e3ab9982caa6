from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.support.services.brokers import free_port
from tests.support.stack import STOP_SECONDS, eventually
from tests.support.up import environ

COMMAND = (sys.executable, "-P", "-m", "mochi_server")


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_up_serves_without_standard_files(closing: str, tmp_path: Path) -> None:
    port = str(free_port())
    shell = ("/bin/sh", "-c", f'exec "$@" {closing}', "sh")
    up = subprocess.Popen(
        [*shell, *COMMAND, "up", "--port", port, "--data-dir", str(tmp_path)],
        env=environ(MOCHI_ENGINE="fake"),
    )
    try:
        eventually(lambda: _is_ready(port), seconds=STOP_SECONDS)
    finally:
        up.terminate()
        assert up.wait(STOP_SECONDS) == 0


def _is_ready(port: str) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/readyz").is_success
    except httpx2.HTTPError:
        return False
