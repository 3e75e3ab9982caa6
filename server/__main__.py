"""The gateway process. `mochi-server gateway` ends up here."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import socket
import sys
import time
from types import FrameType

import structlog
import uvicorn
from typing_extensions import override

from models.errors import MochiError
from server.api.services import Services
from server.app import create_app
from server.keys.file import apply_at_start
from server.settings import ServerSettings, load_settings
from server.transport.listener import inherited, listen
from server.transport.protocol import GuardedProtocol
from server.transport.tls import Loop, tls_context
from worker.broker.connection import connect_gateway
from worker.errors import BrokerUnavailableError
from worker.process.logs import configure_logs
from worker.process.parent_watch import WITH_PARENT, watch_parent
from worker.process.telemetry import Tracing, start_tracing

WAIT_SECONDS = 1.0
"""Until the broker is asked again."""
LAST_WORDS_SECONDS = 1.0
"""In which answers leave that the end of the drain has brought about."""

_log = structlog.get_logger()


def main() -> int:
    """Serve until told to stop."""
    configure_logs()
    if WITH_PARENT in sys.argv[1:]:
        watch_parent()
    try:
        settings = load_settings()
        tracing = start_tracing(os.environ, "mochi-server-gateway")
        _apply_keys(settings)
        gateway = server(settings, tracing)
        listener = inherited(sys.argv) or listen(settings.host, settings.port)
    except MochiError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    host, port = listener.getsockname()[:2]
    _log.info("gateway.listening", url=f"{settings.scheme}://{host}:{port}")
    # All that lives until the end need not be looked at by every collection of garbage: measured,
    # that is a third of a poll's CPU time.
    gc.collect()
    gc.freeze()
    gateway.run(sockets=[listener])
    tracing.stop()
    return 0


def _apply_keys(settings: ServerSettings) -> None:
    """Before anybody is let in. A broker that is not there yet is waited for."""
    while True:
        try:
            apply_at_start(
                settings, settings.redis_url, lambda line: _log.info("key.applied", outcome=line)
            )
        except BrokerUnavailableError as error:
            _log.warning("keys_file.waits", error=error.reason)
            time.sleep(WAIT_SECONDS)
        else:
            return


class Server(uvicorn.Server):
    """Ends quietly: uvicorn's own sends itself the signal once more when it has stopped."""

    def __init__(self, config: uvicorn.Config, services: Services, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._services = services
        self._drain_seconds = drain_seconds

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: running answers finish. Second: they do not."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Blocking calls that are not answered in time are told where to poll, not cut off.

        Who listens to events is let go at once: they go on as well at another gateway.
        """
        _log.info("gateway.stopping", drain_seconds=self._drain_seconds)
        self._services.poller.stop_events()
        asyncio.get_running_loop().call_later(
            self._drain_seconds, self._services.poller.stop_waiting
        )
        await super().shutdown(sockets)


def server(settings: ServerSettings, tracing: Tracing) -> Server:
    """Uvicorn with our settings: it believes only proxies that we name and never waits for ever.

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
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_graceful_shutdown=math.ceil(settings.drain_seconds + LAST_WORDS_SECONDS),
        ),
        app.state.services,
        drain_seconds=settings.drain_seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
