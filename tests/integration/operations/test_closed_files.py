from __future__ import annotations

import subprocess
from pathlib import Path

import httpx

from tests.support.services.brokers import free_port
from tests.support.stack import COMMAND, STOP_SECONDS, eventually
from tests.support.up import environ

CLOSING = ("/bin/sh", "-c", 'exec "$@" <&-', "sh")


def test_up_serves_without_standard_input(tmp_path: Path) -> None:
    port = str(free_port())
    up = subprocess.Popen(
        [*CLOSING, COMMAND, "up", "--port", port, "--data-dir", str(tmp_path)],
        env=environ(MOCHI_ENGINE="fake"),
    )
    try:
        eventually(lambda: _is_ready(port), seconds=STOP_SECONDS)
    finally:
        up.terminate()
        assert up.wait(STOP_SECONDS) == 0


def _is_ready(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success
    except httpx.HTTPError:
        return False
