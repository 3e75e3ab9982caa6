"""Starts processes as forks of one that has loaded the product.

The imports of a gateway, a worker or a command take most of a second of CPU, and the tests start
hundreds of them. A fork has them already; all else of a new process it has for itself: id, session,
arguments, variables, output.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from typing_extensions import override

from server.cli.main import COMMANDS

REPOSITORY = Path(__file__).parents[2]
PRELOADED = (
    "server.__main__",
    "server.api.routes.mcp_tool",
    "worker.__main__",
    "worker.provenance.signing",
    "models.mock.fake_engine",
    *(f"server.cli.{entry.module}" for entry in COMMANDS.values()),
)
ENGINE = "models.mochi.loading.load"
"""What a worker with mock weights imports, which takes seconds: once, before the first of them."""
READ_ON_IMPORT = (
    *("LD_", "PYTHON", "OTEL_", "HF_ENDPOINT", "HF_HOME", "TZ", "LANG", "LC_", "HOME", "PATH"),
)
"""Names of variables that the interpreter or a library reads but once begin so.

Others may differ: libraries set some as soon as a test imports them.
"""
UNCHANGED = dict(os.environ)
"""The variables of the test process, before a test sets one for the processes that it starts."""
SLICE_SECONDS = 0.05
"""Longest that one thread keeps the others from being told."""


def can_fork(environ: Mapping[str, str]) -> bool:
    """Whether a fork is what a new process with these variables would be."""
    names = {name for name in environ.keys() | UNCHANGED.keys() if name.startswith(READ_ON_IMPORT)}
    return all(environ.get(name) == UNCHANGED.get(name) for name in names - {"PYTHONPATH"})


class Forks:
    """The process that forks, and what it tells of its children."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._statuses: dict[int, int | None] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.support.forks"],
            env=UNCHANGED | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._asked, self._told = self._process.stdin, self._process.stdout

    def start(
        self, arguments: Sequence[str], environ: Mapping[str, str], output: Path, errors: Path
    ) -> Fork:
        """Run Python with these variables; its output goes to files, or both to one.

        Args:
            arguments: a module, or the path of a script, and what it is given.
            environ: all its variables.
            output: where standard output goes.
            errors: where standard error goes.
        """
        has_engine = arguments[0] == "worker" and environ.get("MOCHI_MOCK") == "true"
        asked = {
            "preload": [ENGINE] if has_engine else [],
            "child": {
                "arguments": list(arguments),
                "environ": dict(environ),
                "outputs": [str(output), str(errors)],
            },
        }
        with self._lock:
            self._asked.write(json.dumps(asked).encode() + b"\n")
            while (pid := self._hear()) is None:
                pass
        return Fork(self, arguments, pid)

    def stop(self) -> None:
        self._asked.close()
        self._process.wait()

    def status(self, pid: int, seconds: float) -> int | None:
        """The exit status as Popen has it, or None if the child lives on after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            with self._lock:
                if select.select([self._told], [], [], min(left, SLICE_SECONDS))[0]:
                    self._hear()
                elif not left or self._statuses[pid] is not None:
                    return self._statuses[pid]

    def _hear(self) -> int | None:
        """Read a line. Returns the id of a new child, or None when one has ended."""
        line = self._told.readline()
        assert line, "the process that forks has ended"
        pid, status = json.loads(line)
        self._statuses[pid] = status
        return int(pid) if status is None else None


class Fork(subprocess.Popen[bytes]):
    """A child of the process that forks, which alone can wait for it."""

    def __init__(self, forks: Forks, arguments: Sequence[str], pid: int) -> None:
        self._child_created = False  # there is nothing to clean up in this process
        self._forks = forks
        self.args = arguments
        self.pid = pid
        self.returncode: Any = None
        self.stdin = self.stdout = self.stderr = None

    @override
    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forks.status(self.pid, 0.0)
        return None if self.returncode is None else int(self.returncode)

    @override
    def wait(self, timeout: float | None = None) -> int:
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = self._forks.status(self.pid, SLICE_SECONDS)
        return int(self.returncode)


@cache
def forks() -> Forks:
    """Those of this process."""
    return Forks()


def _serve() -> bool:
    """Fork for each line of standard input, until it ends.

    Returns:
        Whether this is a child, with the arguments of what it is to run.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    requests = b""
    while True:
        for descriptor in select.select([0, woken], [], [])[0]:
            data = os.read(descriptor, 65536)
            if descriptor == woken:
                for pid, status in _ended():
                    _tell(pid, status)
            elif not data:
                return False
            else:
                *lines, requests = (requests + data).split(b"\n")
                for line in lines:
                    asked = json.loads(line)
                    _load(*asked["preload"])
                    pid = os.fork()
                    if not pid:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        os.close(woken)
                        os.close(wake)
                        _become(**asked["child"])
                        return True
                    _tell(pid, None)


def _ended() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _tell(pid: int, status: int | None) -> None:
    os.write(1, json.dumps([pid, status]).encode() + b"\n")


def _become(arguments: list[str], environ: Mapping[str, str], outputs: list[str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also when tests run in background
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for file in outputs]
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = arguments


def _load(*modules: str) -> None:
    if not sys.modules.keys() >= {*modules}:
        for name in modules:
            import_module(name)
        gc.collect()
        gc.freeze()


def main() -> None:
    _load(*PRELOADED)
    if not _serve():
        return
    what = sys.argv[0]
    if Path(what).is_absolute():
        runpy.run_path(what, run_name="__main__")
    else:
        sys.modules.pop(f"{what}.__main__", None)  # or runpy warns that it runs twice
        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
