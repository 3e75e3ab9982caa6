"""The embedded broker: a Valkey or Redis server of our own, for one machine.

It survives a crash of its owner, and the next owner attaches to it. Acknowledged writes are on disk
(`appendfsync always`), nothing is evicted, and only this user can reach it: a Unix socket, no port,
private files.
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
from shutil import disk_usage
from typing import IO

import structlog
from redis import Redis
from redis.exceptions import RedisError

from models.settings import make_private_folder
from worker.broker.program import find_program
from worker.errors import BrokerStartError

START_SECONDS = 60.0
"""Loading a long append-only file takes a while."""
STOP_SECONDS = 10.0
"""After SIGTERM, and again after SIGKILL."""
LONGEST_SOCKET_PATH = 100
"""Bytes; the kernel allows 107."""

_log = structlog.get_logger()


class EmbeddedBroker:
    """Owns the server of one data folder, which has at most one owner at a time.

    Two file locks end with their processes, however those end: the owner's `lock`, and `guard`,
    which the server inherits. A second server would corrupt the first one's files, so one is
    started only when `guard` is free, not when a server is silent.

    `wanted` is the program, as in `find_program`.
    """

    def __init__(self, data_dir: Path, wanted: str = "") -> None:
        self._wanted = wanted
        self._program = ""
        self._folder = data_dir.resolve() / "broker"
        self._log_path = self._folder / "valkey.log"
        self._socket = _socket_path(self._folder)
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._attached_pid: int | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def has_folder(self) -> bool:
        """Whether a server has run on the data folder."""
        return self._folder.is_dir()

    def claim(self) -> None:
        """Become the owner of the folder, without a server yet. `start` does so, too.

        Raises:
            BrokerStartError: another process owns the folder, or it cannot be used; or there is no
                program for a server.
        """
        self._program = self._program or find_program(self._wanted)
        with self._explained():
            if self._lock is None:
                self._lock = self._lock_folder()

    def note_owner(self, url: str) -> None:
        """Tell others who find the folder claimed where this process serves."""
        if self._lock is not None:
            with suppress(OSError):  # a full disk
                os.write(self._lock.fileno(), f", {url}".encode())

    def owner_url(self) -> str:
        """Where the owner serves; empty if none does."""
        with suppress(OSError):
            if self.is_alive():
                return (self._folder / "lock").read_text().partition(", ")[2]
        return ""

    def start(self) -> None:
        """Attach to the running server, or start one. May be repeated, to start a dead one.

        Raises:
            BrokerStartError: another process owns the folder, it cannot be used (its disk is full),
                or the server does not start.
        """
        self.claim()
        with self._explained():
            is_new = self._start()
        if is_new:
            self._wait_until_ready()
            self._attached_pid = self._query_pid()

    def _start(self) -> bool:
        """Whether there is a server to wait for: one just started, or just attached to."""
        is_new = self._attached_pid is None
        guard = self._take_guard()
        if guard is not None:
            with guard:
                self._process = self._spawn(guard)
            is_new = True
        return is_new

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BrokerStartError(
                f"The folder {self._folder} cannot be used: {error.strerror}.{self._room()} "
                "Choose another with --data-dir."
            ) from None

    def is_running(self) -> bool:
        """Whether there is a server's process, which may hang or still load its data."""
        if self._process is not None and self._process.poll() is None:
            return True  # whatever has become of its folder
        with suppress(OSError):  # `start` reports it better
            guard = self._take_guard()
            if guard is not None:
                guard.close()
            return guard is None
        return False

    def end_reason(self) -> str:
        """Why a server has ended, for the log: its status, if it was our child, and last line."""
        status = self._process.wait() if self._process is not None else "unknown"
        return f"Its exit status is {status}. Last line of its log: {self._last_line()}"

    def is_alive(self) -> bool:
        """Whether a server answers on the folder's socket and has loaded its data."""
        try:
            with Redis.from_url(self.url, socket_timeout=1.0, retry=None) as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False

    def stop(self) -> None:
        """Stop the server, started or attached, and release the folder."""
        if self._lock is None:
            return  # another process owns it
        self._end_server()
        if self._socket.parent != self._folder:
            with suppress(OSError):
                self._socket.unlink(missing_ok=True)
                self._socket.parent.rmdir()
        self._lock.close()
        self._lock = None

    def _lock_folder(self) -> IO[str]:
        for folder in (self._folder, self._socket.parent):
            make_private_folder(folder)
            if folder.stat().st_uid != os.getuid():
                raise BrokerStartError(f"{folder} belongs to another user.")
        lock = self._open("lock")
        if _try_lock(lock):
            try:
                lock.truncate(0)
                # Without a buffer, which `close` would fail to write to a full disk.
                os.write(lock.fileno(), str(os.getpid()).encode())
            except OSError:
                lock.close()  # the next try locks it anew
                raise
            return lock
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise BrokerStartError(
            f"{self._folder.parent} is in use by another mochi-server (pid {owner}). Stop "
            "it, or give the second one a folder and a port of its own, as with --data-dir FOLDER "
            "--port 8001."
        )

    def _take_guard(self) -> IO[str] | None:
        """The server's lock; None while a server holds it."""
        guard = self._open("guard")
        if _try_lock(guard):
            return guard
        guard.close()
        return None

    def _open(self, name: str) -> IO[str]:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        return os.fdopen(os.open(self._folder / name, flags, 0o600), "a+")

    def _spawn(self, guard: IO[str]) -> subprocess.Popen[bytes]:
        if self._process is not None:
            self._process.wait()  # it is dead: its guard was free
        self._socket.unlink(missing_ok=True)
        command = [
            self._program,
            *("--port", "0"),
            *("--unixsocket", str(self._socket)),
            *("--unixsocketperm", "700"),
            *("--dir", str(self._folder)),
            *("--appendonly", "yes"),
            *("--appendfsync", "always"),
            # Commands in place of RDB, whose format older versions and the other kind cannot read.
            *("--aof-use-rdb-preamble", "no"),
            *("--save", ""),
            *("--maxmemory-policy", "noeviction"),
            *("--daemonize", "no"),
        ]
        with self._open(self._log_path.name) as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                umask=0o077,
                pass_fds=[guard.fileno()],
                start_new_session=True,  # Ctrl-C must not reach it: it is stopped last
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.is_alive():
            if not self.is_running() or time.monotonic() > deadline:
                self.stop()
                raise BrokerStartError(
                    f"{self._program} did not start: {self._last_line()} "
                    f"(see {self._log_path}).{self._room()} If another server has written "
                    "these data, name its program in MOCHI_VALKEY."
                )
            time.sleep(0.02)

    def _last_line(self) -> str:
        with suppress(OSError):
            return "".join(self._log_path.read_text(errors="replace").strip().splitlines()[-1:])
        return "unreadable"

    def _room(self) -> str:
        """A sentence of the room on its disk, which is the usual cause; empty if unknown."""
        try:
            return (
                f" The disk of {self._folder} has {disk_usage(self._folder).free >> 20} MiB free."
            )
        except OSError:
            return ""

    def _end_server(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + STOP_SECONDS
            while self.is_running() and time.monotonic() < deadline:
                pid = self._pid()
                if pid is not None:
                    with suppress(OSError):  # gone meanwhile
                        os.kill(pid, number)
                time.sleep(0.02)
        if self.is_running():
            _log.error("broker.not_stopped", folder=str(self._folder), pid=self._pid())
        elif self._process is not None:
            self._process.wait()

    def _pid(self) -> int | None:
        """The server's process, if known. A pid file could name another process by now."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        return self._query_pid() or self._attached_pid

    def _query_pid(self) -> int | None:
        try:
            with Redis.from_url(self.url, socket_timeout=1.0, retry=None) as client:
                return int(client.info("server")["process_id"])
        except (RedisError, OSError):
            return None


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def broker_of(redis_url: str, data_dir: Path, wanted: str = "") -> Iterator[str]:
    """The URL of the broker, for a command.

    Args:
        redis_url: of an external broker; empty: the embedded one of `data_dir`, which is started
            for the duration if it does not run.
        data_dir: as in `WorkerSettings`.
        wanted: the program of the embedded one, as in `find_program`.

    Raises:
        BrokerStartError: as `EmbeddedBroker.start`.
    """
    if redis_url:
        yield redis_url
        return
    broker = EmbeddedBroker(data_dir, wanted)
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
    # Too long for a socket: use a private temporary folder, named by the real one's hash.
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"mochi-{os.getuid()}-{digest}" / "valkey.sock"
