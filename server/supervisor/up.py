"""Supervisor of `mochi-server up`: starts, watches and stops broker, gateway and workers.

Each part is a process of its own, started as on a cluster. One that dies or hangs is restarted. A
gateway that rejects its settings (EX_CONFIG), or all workers that do, stop everything. The broker
stops last.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from shlex import quote

import httpx2
import structlog

from server.keys.file import SETTING as KEYS_FILE
from server.keys.file import apply_at_start
from server.keys.first import first_key_file, read_first_key
from server.page.browser import open_page
from server.settings import ServerSettings
from server.supervisor.children import (
    GATEWAY_HANG_SECONDS,
    WATCH_SECONDS,
    BackOff,
    Child,
    end_children,
)
from server.supervisor.pool import WorkerPool
from server.transport.connection.listener import listen, own_address, url_of
from server.transport.connection.tls import tls_context
from worker.broker.connection import connect_briefly
from worker.broker.embedded import EmbeddedBroker
from worker.errors import BrokerStartError, BrokerUnavailableError
from worker.process.logs import configure_logs, say
from worker.process.shutdown import Stop, on_signals
from worker.process.systemd import Notifier
from worker.store.fleet import survey

PROBE_SECONDS = 0.5
"""Longest look at the gateway. A signal is passed on after it: within `TOGETHER_SECONDS`."""
BROKER_RESTART_SECONDS = 0.2
"""Back-off before the restart of the broker; each death in a row doubles it."""

_log = structlog.get_logger()


class BrokerKeeper:
    """Restarts the embedded broker when it dies; again and again, as its disk may be full."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self._back_off = BackOff(BROKER_RESTART_SECONDS)
        self._restart_at: float | None = None

    def watch(self) -> None:
        if self._restart_at is None:
            if not self._broker.is_running():
                self._wait(self._broker.end_reason())
        elif time.monotonic() >= self._restart_at:
            self._restart_at = None
            self._back_off.started()
            try:
                self._broker.start()
            except BrokerStartError as error:
                self._wait(str(error))

    def _wait(self, reason: str) -> None:
        seconds = self._back_off.died()
        self._restart_at = time.monotonic() + seconds
        _log.error("broker.died", reason=reason, again_in=seconds)


@dataclass
class Supervisor:
    """Runs the parts of one machine. `broker` is None when it is external.

    The supervisor owns the listening socket: the port is taken before anything else starts, and
    stays taken while a gateway restarts.
    """

    settings: ServerSettings
    listener: socket.socket
    broker: EmbeddedBroker | None
    stop: Stop
    notifier: Notifier
    opens_page: bool = False
    key_file: Path | None = None

    def run(self) -> int:
        """Run everything until a signal arrives. Returns the exit status.

        Raises:
            MochiError: the broker cannot be started, or does not answer.
        """
        if self.broker:
            self.broker.note_owner(self._local_url)
        url = self.broker.url if self.broker else self.settings.redis_url
        apply_at_start(self.settings, url, lambda line: say(f"Key {line}"))
        self.key_file = first_key_file(connect_briefly(url), self.settings.data_dir)
        environ = os.environ | {
            KEYS_FILE: "",  # already applied
            "MOCHI_REDIS_URL": url,
            "MOCHI_DATA_DIR": str(self.settings.data_dir),
        }
        keeper = BrokerKeeper(self.broker) if self.broker else None
        gateway = Child("server", environ, self.listener, hang_seconds=GATEWAY_HANG_SECONDS)
        pool = WorkerPool(self.settings, environ)
        try:
            status = self._watch(gateway, pool, keeper)
        finally:
            self._end([gateway, *pool.workers], keeper)
        if status == 0 and self.broker is not None:
            _say_waiting(url)
        return status

    def _watch(self, gateway: Child, pool: WorkerPool, keeper: BrokerKeeper | None) -> int:
        self.notifier.starting("Loading the model")
        say("Starting …" if self.settings.is_light_mock else "Starting: loading the model …")
        ready = False
        while not self._stops_within(WATCH_SECONDS):
            if not (gateway.watch() and pool.watch()):
                return os.EX_CONFIG  # the child has printed why
            if keeper is not None:
                keeper.watch()
            if not ready and self._is_ready():
                ready = True
                self._announce()
            if ready:
                self.notifier.serving(f"Ready on {self._url}/v1")
        say(
            f"Stopping: running requests have {self.settings.drain_seconds:g} s to finish; press "
            "Ctrl-C again, after a second, to stop now and requeue them …"
        )
        return 0

    def _stops_within(self, seconds: float) -> bool:
        """A signal to all processes ends the broker too, whose restart may take long."""
        if not self.stop.draining:
            time.sleep(seconds)
        return self.stop.draining

    def _is_ready(self) -> bool:
        try:
            # Without a proxy, which cannot reach this machine's loopback. Without verification, as
            # the certificate is for another name; no secret is sent to this socket of our own.
            answer = httpx2.get(
                f"{self._local_url}/readyz",
                timeout=PROBE_SECONDS,
                trust_env=False,
                verify=False,
            )
        except httpx2.HTTPError:
            return False
        # 200 alone may mean without a worker: MOCHI_WAIT_FOR_WORKER.
        return answer.is_success and answer.json()["status"] == "ready"

    @property
    def _local_url(self) -> str:
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared, not bound)
        host = everywhere.get(self.settings.host, self.settings.host)
        return url_of(self.settings.scheme, host, self.listener.getsockname()[1])

    @property
    def _url(self) -> str:
        return self.settings.public_url or self._local_url

    def _announce(self) -> None:
        url = self._url
        say(f"Ready on {url}/v1 ({_engine(self.settings)})")
        say(f"API key: {self._shown_key()}")
        if self.settings.docs:
            link = self._page_link(url)
            say(f"Page: {link if sys.stderr.isatty() else f'{url}/'}")
            if self.opens_page and not open_page(link):
                say("No browser was found here: open the page yourself.")
            say(f"Documents: {url}/docs")
        self._say_to_others()
        say("Stop with Ctrl-C.")

    def _say_to_others(self) -> None:
        """Where other machines call it, which the links above may not show."""
        host, port = self.listener.getsockname()[:2]
        address = ip_address(host)
        if address.is_loopback or self.settings.public_url:
            return
        scheme = self.settings.scheme
        url = url_of(scheme, own_address() if address.is_unspecified else host, port)
        risk = "" if scheme == "https" else ". Keys travel unencrypted over HTTP: see --tls-cert"
        say(f"From other machines: {url}/v1{risk}")

    def _page_link(self, url: str) -> str:
        """With the key, if there is one: browsers send no fragment, so no log has it."""
        if self.key_file is None:
            return f"{url}/"
        return f"{url}/#key={read_first_key(self.settings.data_dir)}"

    def _shown_key(self) -> str:
        """The key on a terminal; elsewhere, where output may be logged, only its file.

        A line of both would be wrapped within one of them.
        """
        if self.key_file is None:
            return (
                f"none is kept in {self.settings.data_dir}. The broker's keys are valid (list them "
                "with `mochi-server keys list`); `mochi-server keys create NAME` makes another"
            )
        if sys.stderr.isatty():
            return f"{read_first_key(self.settings.data_dir)}\nKey file: {self.key_file}"
        use = f"export MOCHI_API_KEY=$(cat {quote(str(self.key_file))})"
        return f"kept in {self.key_file}, and not printed without a terminal. To use it: {use}"

    def _end(self, children: list[Child], keeper: BrokerKeeper | None) -> None:
        """Stop gateway and workers together, so that a blocking call may still get its video."""
        self.listener.close()  # otherwise clients would wait for a gateway that has stopped

        def meanwhile() -> None:
            self.notifier.draining()
            if keeper is not None:
                keeper.watch()  # a signal to all processes may have ended it: requests need it

        end_children(children, self.settings.drain_seconds, self.stop, meanwhile)


def _engine(settings: ServerSettings) -> str:
    if not settings.is_mock:
        return settings.weights
    return "light mock" if settings.is_light_mock else "mock weights"


def supervise(settings: ServerSettings, *, opens_page: bool = False) -> int:
    """Run everything on this machine until a signal arrives. Returns the exit status.

    Args:
        settings: of all parts.
        opens_page: open the page in a browser when the server is ready.

    Raises:
        MochiError: a setting cannot be used, or the broker cannot be started.
    """
    configure_logs()
    notifier = Notifier.take(os.environ)
    stop = Stop()
    on_signals(lambda *_: stop.ask(), signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    broker = None if settings.redis_url else EmbeddedBroker(settings.data_dir, settings.valkey)
    try:
        tls_context(settings)  # reports an unusable file before anything starts
        if broker is not None:
            broker.claim()  # before the port: of both, a first `up` is the better explanation
        with listen(settings.host, settings.port) as listener:
            if broker is not None:
                broker.start()
            status = Supervisor(settings, listener, broker, stop, notifier, opens_page).run()
    finally:
        notifier.stopping()
        if broker is not None:
            broker.stop()
    if status == 0:
        say("Stopped.")
    return status


def _say_waiting(url: str) -> None:
    with suppress(BrokerUnavailableError), closing(connect_briefly(url)) as redis:
        count = survey(redis).waiting
        if count:
            requests = "1 request waits" if count == 1 else f"{count} requests wait"
            say(f"{requests} for the next start.")
