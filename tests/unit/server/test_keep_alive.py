from __future__ import annotations

import re
from pathlib import Path

from server.__main__ import server
from server.settings import ServerSettings
from worker.process.systemd import Notifier
from worker.process.telemetry import start_tracing

CADDYFILE = Path(__file__).parents[3] / "docker" / "Caddyfile"
PROXIES_SECONDS = 60
"""For how long nginx and load balancers of AWS keep an idle connection by default."""


def test_idle_connections_outlive_the_pause_of_pollers_and_the_patience_of_proxies() -> None:
    settings = ServerSettings(redis_url="redis://127.0.0.1:1/0")
    seconds = server(settings, start_tracing({}, "test"), Notifier()).config.timeout_keep_alive
    assert seconds > PROXIES_SECONDS
    (of_caddy,) = re.findall(r"keepalive (\d+)s", CADDYFILE.read_text())
    assert seconds > int(of_caddy)
