"""`mochi-server up`: broker, gateway and workers of one machine, started, watched and stopped.

Every part is a process of its own, started as it would be on a cluster. What dies is started again;
what says that its settings are wrong (EX_CONFIG) ends everything. The broker stops last.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import structlog
from rich.console import Console

from models.errors import MochiError
from server.keys import file as key_file
from server.keys.file import apply_at_start
from server.keys.first import first_key_file, read_first_key
from server.settings import ServerSettings
from server.transport.listener import INHERITED, listen
from server.transport.tls import tls_context
from worker.broker.connection import connect_briefly
from worker.broker.embedded import EmbeddedBroker
from worker.errors import BrokerUnavailableError
from worker.process.logs import configure_logs
from worker.process.parent_watch import WITH_PARENT
from worker.process.shutdown import Stop

WATCH_SECONDS = 0.2
RESTART_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before it is started again, for what dies again and again; the last one for ever."""
STEADY_SECONDS = 60.0
"""Who has lived so long has not died at its start."""
GIVE_BACK_SECONDS = 5.0
"""From when it is urgent to the kill: a request is given back within a beat."""

_log = structlog.get_logger()
_console = Console(stderr=True)


class Child:
    """One process of ours, started again when it dies."""

    def __init__(
        self, package: str, environ: dict[str, str], listener: socket.socket | None = None
    ) -> None:
        self.package = package
        self._environ = environ
        self._listener = listener
        self._process = self._spawn()
        self._born = time.monotonic()
        self._deaths = 0
        self._restart_at: float | None = None

    def watch(self) -> bool:
        """Start it again a moment after it died. False when that cannot help."""
        status = self._process.poll()
        if status is None:
            return True
        self._let_go()
        if status == os.EX_CONFIG:
            return False
        if self._restart_at is None:
            self._restart_at = time.monotonic() + self._note_end(status)
        elif time.monotonic() >= self._restart_at:
            self._restart_at = None
            self._process = self._spawn()
            self._born = time.monotonic()
        return True

    def _note_end(self, status: int) -> float:
        """Returns the seconds after which to start it again."""
        if status == 0:
            _log.info("process.ended", process=self.package)
            return 0.0
        if time.monotonic() - self._born > STEADY_SECONDS:
            self._deaths = 0
        seconds = RESTART_SECONDS[min(self._deaths, len(RESTART_SECONDS) - 1)]
        self._deaths += 1
        _log.error("process.died", process=self.package, status=status, again_in=seconds)
        return seconds

    def signal(self) -> None:
        """Ask it to stop; again, more urgently."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so long."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()
        self._let_go()

    def _let_go(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", self.package, WITH_PARENT]
        descriptors = [self._listener.fileno()] if self._listener else []
        if descriptors:
            command += [INHERITED, str(descriptors[0])]
        return subprocess.Popen(
            command,
            env=self._environ,
            pass_fds=descriptors,
            stdin=subprocess.PIPE,  # our end of its lifeline
            start_new_session=True,  # Ctrl-C is for us, who stop them in order
        )


def devices(settings: ServerSettings) -> list[str]:
    """The device of each worker: one card each, as none has room for two engines."""
    if settings.workers == 1:
        return [settings.device]
    first = int(settings.device.partition(":")[2] or 0)
    return [f"cuda:{first + index}" for index in range(settings.workers)]


class Supervisor:
    """The parts of one machine. `broker` is None when it is not ours.

    It is the supervisor that listens: the port is taken before anything else is done, and stays
    taken while a gateway is started again.
    """

    def __init__(
        self,
        settings: ServerSettings,
        listener: socket.socket,
        broker: EmbeddedBroker | None,
        stop: Stop,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._broker = broker
        self._url = broker.url if broker else settings.redis_url
        self._stop = stop
        self._key_file: Path | None = None

    def run(self) -> int:
        """Run everything until a signal comes. Returns the exit status.

        Raises:
            MochiError: the broker cannot be started, or does not answer.
        """
        apply_at_start(self._settings, self._url, lambda line: _say(f"Key {line}"))
        self._key_file = first_key_file(connect_briefly(self._url), self._settings.data_dir)
        environ = os.environ | {
            key_file.SETTING: "",  # it is applied
            "MOCHI_REDIS_URL": self._url,
            "MOCHI_DATA_DIR": str(self._settings.data_dir),
        }
        gateway = Child("server", environ, self._listener)
        workers = [
            Child("worker", environ | {"MOCHI_DEVICE": device})
            for device in devices(self._settings)
        ]
        try:
            return self._watch([gateway, *workers])
        finally:
            self._end(gateway, workers)

    def _watch(self, children: list[Child]) -> int:
        _say("Starting: the model is being loaded …")
        ready = False
        while not self._stop.draining:
            time.sleep(WATCH_SECONDS)
            if not all(child.watch() for child in children):
                return os.EX_CONFIG  # the child has said why
            if self._broker is not None:
                self._broker.start()  # attaches, unless it died
            if not ready and self._is_ready():
                ready = True
                self._announce()
        _say("Stopping: running requests finish; Ctrl-C again gives them back …")
        return 0

    def _is_ready(self) -> bool:
        try:
            # A proxy for the outside knows nothing of this machine. The certificate is made for
            # another name, and need not be verified: we ask the socket that we listen on, with
            # no secret, and only say "Ready" to what we are told.
            return httpx.get(
                f"{self._local_url}/readyz",
                timeout=1.0,
                trust_env=False,
                verify=False,  # noqa: S501
            ).is_success
        except httpx.HTTPError:
            return False

    @property
    def _local_url(self) -> str:
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared, not bound)
        host = everywhere.get(self._settings.host, self._settings.host)
        port = self._listener.getsockname()[1]
        return f"{self._settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def _announce(self) -> None:
        url = self._settings.public_url or self._local_url
        _say(f"Ready on {url}/v1 ({_engine(self._settings)})")
        _say(f"API key: {self._shown_key()}")
        if self._settings.docs:
            _say(f"Page: {url}/")
            _say(f"Documents: {url}/docs")
        _say("Stop with Ctrl-C.")

    def _shown_key(self) -> str:
        """The key itself where its owner reads it; where it would be logged, where it is kept."""
        if self._key_file is None:
            return "made with `mochi-server keys create NAME`"
        if _console.is_terminal:
            return f"{read_first_key(self._settings.data_dir)} (kept in {self._key_file})"
        return f"kept in {self._key_file}"

    def _end(self, gateway: Child, workers: list[Child]) -> None:
        """Gateway and workers at once, so that a blocking call may still get its video."""
        self._listener.close()  # or clients would wait for a gateway that is gone
        children = [gateway, *workers]
        for child in children:
            child.signal()
        deadline = time.monotonic() + self._settings.drain_seconds + GIVE_BACK_SECONDS
        is_urgent = False
        while not all(child.wait(WATCH_SECONDS) for child in children):
            if self._stop.urgent and not is_urgent:
                is_urgent = True
                deadline = time.monotonic() + GIVE_BACK_SECONDS
                for child in children:
                    child.signal()
            if time.monotonic() > deadline:
                break
        for child in children:
            if not child.wait(0):
                child.kill()


def supervise(settings: ServerSettings) -> int:
    """Run everything on this machine until a signal comes. Returns the exit status."""
    configure_logs()
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.ask())
    broker = None if settings.redis_url else EmbeddedBroker(settings.data_dir)
    try:
        tls_context(settings)  # a file that cannot be used is named before anything is started
        with listen(settings.host, settings.port) as listener:
            if broker is not None:
                broker.start()
            status = Supervisor(settings, listener, broker, stop).run()
    except MochiError as error:
        text = error.advice if isinstance(error, BrokerUnavailableError) else str(error)
        _console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        return os.EX_CONFIG
    finally:
        if broker is not None:
            broker.stop()
    if status == 0:
        _say("Stopped.")
    return status


def _say(line: str) -> None:
    _console.print(line, markup=False, highlight=False, soft_wrap=True)


def _engine(settings: ServerSettings) -> str:
    if settings.engine == "fake":
        return "the fake engine"
    return "mock weights" if settings.mock else settings.weights
