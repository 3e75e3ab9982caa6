"""`mochi-server wrap` as a command: exit status, options, signals and terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.integration.clients.wrap.wrapped import Wrapped
from tests.support.stack import COMMAND, Stack, eventually, start_command


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("sh", "-c", "exit 3"), 3),
        (("sh", "-c", "kill -KILL $$"), 137),
        (("no-such-program",), 127),
        (("/etc/passwd",), 126),
    ],
)
def test_the_exit_status_is_the_commands(
    server: Stack, folder: Path, command: tuple[str, ...], status: int
) -> None:
    done = Wrapped(server, folder, *command)
    assert done.status == status
    assert ("cannot be run: " in done.errors) == (status in {126, 127})


@pytest.mark.parametrize("url", ["ftp://here", "http://", "http://here/mochi", "http://here:port"])
def test_a_url_that_is_none_of_a_server_is_refused(server: Stack, folder: Path, url: str) -> None:
    done = Wrapped(server, folder, "true", MOCHI_URL=url)
    assert done.status == 1
    assert f"not {url}.\n" in done.errors


TALKER = """
import signal, sys, time
got = []
def note(number, _frame):
    got.append(signal.Signals(number).name)
    print(*got, flush=True)
    if number == signal.SIGTERM:
        sys.exit(5)
for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(each, note)
print("ready", flush=True)
while True:
    time.sleep(60)
"""


def told(output: Path, name: str) -> bool:
    return name in output.read_text()


def test_signals_go_to_the_command_and_wrap_ends_with_it(server: Stack, tmp_path: Path) -> None:
    output, errors = tmp_path / "output", tmp_path / "errors"
    environ = server.environ | {"MOCHI_API_KEY": "any", "TMPDIR": str(tmp_path)}
    command = ["wrap", "--", sys.executable, "-c", TALKER]
    process = start_command(command, environ, output, errors)
    try:
        eventually(lambda: output.exists() and "ready" in output.read_text())
        (made,) = tmp_path.glob("mochi-server-wrap-*")
        assert made.stat().st_mode & 0o777 == 0o700
        for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            process.send_signal(each)
            eventually(partial(told, output, each.name))
        assert process.wait(30) == 5
    finally:
        process.kill()
    assert not made.exists()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


def test_a_typed_interrupt_reaches_the_command_once(
    server: Stack, tmp_path: Path, terminal: tuple[int, int]
) -> None:
    keyboard, line = terminal
    program = tmp_path / "program.py"
    program.write_text(TALKER.replace("== signal.SIGTERM", "== signal.SIGTERM or len(got) > 1"))
    script = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [COMMAND, "wrap", "--", sys.executable, str(program)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command],
        env=server.environ | {"MOCHI_API_KEY": "any"},
        stdin=line,
        stdout=line,
        stderr=line,
    )
    try:
        shown = read_until(keyboard, b"ready")
        os.write(keyboard, b"\x03")
        read_until(keyboard, b"^C")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.terminate()
        assert process.wait(30) == 5
        assert b"SIGINT SIGTERM" in shown + read_until(keyboard, b"SIGTERM")
    finally:
        process.kill()


def read_until(file: int, text: bytes) -> bytes:
    shown = b""
    while text not in shown:
        assert select.select([file], [], [], 60)[0], shown
        shown += os.read(file, 1000)
    return shown
