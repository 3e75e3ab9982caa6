"""What a process loads before it serves: settings and `--version` are needed without a server."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"redis", "rq", "httpx2", "fastapi", "starlette", "uvicorn", "structlog"}


def loaded(code: str) -> set[str]:
    """The top-level modules of a fresh process after it has run `code`."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_settings_load_without_redis_httpx_and_fastapi() -> None:
    code = "from server.settings import load_settings; load_settings()"
    assert not loaded(code) & HEAVY


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_the_command_answers_before_it_loads_anything_of_a_server(option: str) -> None:
    code = f"from server.cli.main import app; app([{option!r}], standalone_mode=False)"
    assert not loaded(code) & (HEAVY | {"pydantic", "pydantic_settings"})
