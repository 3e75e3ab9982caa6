"""The gateway process. `mochi-server gateway` ends up here."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import structlog
import uvicorn
from typing_extensions import override

from models.errors import MochiError
from server.api.services import Services
from server.app import create_app
from server.keys.file import apply_at_start
from server.settings import ServerSettings, load_settings
from server.transport.connection.listener import inherited, listen, url_of
from server.transport.connection.protocol import GuardedProtocol
from server.transport.connection.tls import Loop, tls_context
from worker.broker.connection import check_schema_at_start, connect_briefly, connect_gateway
from worker.errors import BrokerUnavailableError, SchemaError
from worker.process.logs import configure_logs, say
from worker.process.parent_watch import WITH_PARENT, watch_parent
from worker.process.shutdown import DRAIN, Stop, on_signals
from worker.process.systemd import Notifier
from worker.process.telemetry import Tracing, start_tracing
from worker.runtime.background import start_fallback_reconciler
from worker.store.worker_side import WorkerStore

WAIT_SECONDS = 1.0
"""Between two attempts to reach the broker."""
LAST_WORDS_SECONDS = 1.0
"""Extra seconds for responses that the end of the drain triggers."""
KEEP_ALIVE_SECONDS = 75
"""An idle connection stays open. Longer than clients pause between two polls and than proxies keep
theirs: a request that crosses the close is reset. uvicorn's 5 s is the commonest interval."""
FEW_FILES = 1024
"""Open files that are not enough: each client is one, and some share a connection to the broker."""
URGENCY_INTERVAL_SECONDS = 0.1
"""Between two looks at whether a stop has become urgent."""

_log = structlog.get_logger()


def main() -> int:
    """Serve until told to stop."""
    configure_logs()
    notifier = Notifier.take(os.environ)
    _raise_file_limit()
    if WITH_PARENT in sys.argv[1:]:
        watch_parent()
    try:
        settings = load_settings()
        check_schema_at_start(settings.redis_url)
        tracing = start_tracing(os.environ, "mochi-server-gateway")
        _apply_keys(settings)
        gateway = server(settings, tracing, notifier)
        listener = inherited(sys.argv) or listen(settings.host, settings.port)
    except MochiError as error:
        say(str(error), "error")
        return os.EX_CONFIG
    host, port = listener.getsockname()[:2]
    _log.info("gateway.listening", url=url_of(settings.scheme, host, port))
    _start_fallback_reconciler(settings, gateway.services)
    # Garbage collection skips what lives until the exit; scanning it costs a third of a poll's CPU.
    gc.collect()
    gc.freeze()
    gateway.run(sockets=[listener])
    notifier.stopping()
    tracing.stop()
    return 0


def _raise_file_limit() -> None:
    """Allow as many open files, and so clients, as the system lets this process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems have a lower limit than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != resource.RLIM_INFINITY and now < FEW_FILES:
        remedy = f"Raise the hard limit of open files to {FEW_FILES} or more (ulimit -Hn)"
        _log.warning("files.few", open_files=now, remedy=remedy)


def _apply_keys(settings: ServerSettings) -> None:
    """Apply the file of keys before the first request; wait for a broker that does not answer."""
    while True:
        try:
            apply_at_start(
                settings, settings.redis_url, lambda line: _log.info("key.applied", outcome=line)
            )
        except SchemaError:
            raise
        except BrokerUnavailableError as error:
            _log.warning("keys_file.waits", error=error.reason)
            time.sleep(WAIT_SECONDS)
        else:
            return


def _start_fallback_reconciler(settings: ServerSettings, services: Services) -> None:
    lease_seconds, retention_seconds = settings.lease_seconds, settings.retention_seconds
    store = WorkerStore(
        connect_briefly(settings.redis_url),
        lease_seconds=lease_seconds,
        retention_seconds=retention_seconds,
    )
    start_fallback_reconciler(
        store, services.outputs, lease_seconds=lease_seconds, retention_seconds=retention_seconds
    )


class Server(uvicorn.Server):
    """Exits quietly: uvicorn's own server raises the signal again when it has stopped.

    It also replaces signals that this process was told to ignore.
    """

    def __init__(self, config: uvicorn.Config, services: Services, notifier: Notifier) -> None:
        super().__init__(config)
        self.services = services
        self._notifier = notifier
        self._stop = Stop(services.settings.drain_seconds)

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        on_signals(self.handle_exit, signal.SIGINT, signal.SIGTERM, DRAIN)
        yield

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the first signal running responses finish; on a later one they end soon."""
        self._stop.ask(sig)
        self.should_exit = True

    @override
    async def on_tick(self, counter: int) -> bool:
        """Ten times a second, once the lifespan has begun and the sockets are served."""
        self._notifier.serving("Serving")
        return await super().on_tick(counter)

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End event streams at once, and blocking calls, with the URL to poll, after the drain."""
        _log.info("gateway.stopping", drain_seconds=self.services.settings.drain_seconds)
        self.services.poller.stop_events()
        end = asyncio.create_task(self._end_responses())
        await super().shutdown(sockets)
        end.cancel()
        if self.force_exit:
            await self.lifespan.shutdown()  # uvicorn skips it

    async def _end_responses(self) -> None:
        """When it is urgent, let blocking calls answer, then give up on what still runs."""
        while not self._stop.urgent:
            self._notifier.draining()
            await asyncio.sleep(URGENCY_INTERVAL_SECONDS)
        self.services.poller.stop_waiting()
        await asyncio.sleep(LAST_WORDS_SECONDS)
        self.force_exit = True


def server(settings: ServerSettings, tracing: Tracing, notifier: Notifier) -> Server:
    """Uvicorn with these settings: it trusts only the named proxies, and its drain has an end.

    Raises:
        SettingsError, OutputsUnusableError: a file of TLS, or a variable, cannot be used.
    """
    tls = tls_context(settings)
    app = create_app(
        settings, connect_gateway(settings.redis_url), tracer_provider=tracing.provider
    )
    return Server(
        uvicorn.Config(
            app,
            http=GuardedProtocol,
            loop=f"{Loop.__module__}:{Loop.__name__}",
            ssl_context_factory=(lambda *_: tls) if tls else None,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies,
        ),
        app.state.services,
        notifier,
    )


if __name__ == "__main__":
    sys.exit(main())
