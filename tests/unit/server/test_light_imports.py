"""What a process loads before it serves: settings and `--version` are needed without a server."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"redis", "rq", "httpx", "fastapi", "starlette", "uvicorn", "structlog"}


def loaded(code: str) -> set[str]:
    """The top-level modules of a fresh process after it has run `code`."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_settings_load_without_redis_httpx_and_fastapi() -> None:
    code = "from server.settings import load_settings; load_settings()"
    assert not loaded(code) & HEAVY
