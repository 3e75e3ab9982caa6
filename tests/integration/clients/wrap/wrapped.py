"""Runs a program under `mochi-server wrap`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.stack import Stack

LOCAL_CALLS_ONLY = """
import sys
def watch(event, arguments):
    if event == "socket.getaddrinfo":
        assert arguments[0] in ("127.0.0.1", b"127.0.0.1"), arguments
    if event == "socket.connect":
        assert arguments[1][0] == "127.0.0.1", arguments
sys.addaudithook(watch)
"""
"""The program fails when it looks for, or calls, any other host."""
BODY = {"prompt": "a pond", "frames": 1, "steps": 10}
CALL = f"""
import json, os
url, headers = "https://api.segmind.com/v1/mochi-1", {{"x-api-key": os.environ["SEGMIND_API_KEY"]}}
body = {BODY}
"""


class Wrapped:
    """A command that has been run."""

    def __init__(self, stack: Stack, folder: Path, *command: str, **variables: str) -> None:
        environ = {"MOCHI_URL": stack.url, "MOCHI_API_KEY": stack.key(), "TMPDIR": str(folder)}
        self.run = stack.run("wrap", "--", *command, **environ | variables)
        self.status, self.output, self.errors = (
            self.run.returncode,
            self.run.stdout,
            self.run.stderr,
        )
        assert not [*folder.glob("mochi-server-wrap-*")]


def python(stack: Stack, folder: Path, code: str) -> str:
    """What the program prints that ran to its end and called no other host."""
    done = Wrapped(stack, folder, sys.executable, "-c", LOCAL_CALLS_ONLY + CALL + code)
    assert (done.status, done.errors) == (0, "")
    return done.output
