"""`up` and a broker that cannot be restarted at once."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server import supervisor
from server.settings import ServerSettings
from server.supervisor import Supervisor
from worker.broker.embedded import EmbeddedBroker
from worker.errors import BrokerStartError
from worker.process.shutdown import Stop


def test_a_broker_that_cannot_be_restarted_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    class Full(EmbeddedBroker):
        tries = 0

        def start(self) -> None:
            self.tries += 1
            if self.tries == 3:
                return stop.ask()
            raise BrokerStartError("No space left on device")

    monkeypatch.setattr(supervisor, "BROKER_PAUSE_SECONDS", 0)
    monkeypatch.setattr(supervisor, "WATCH_SECONDS", 0)
    monkeypatch.setattr(Supervisor, "_is_ready", lambda _: False)
    broker = Full(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener, capture_logs() as logs:
        settings = ServerSettings(data_dir=tmp_path)
        assert Supervisor(settings, listener, broker, stop)._watch([]) == 0
    assert broker.tries == 3
    assert [log["reason"] for log in logs] == ["No space left on device"] * 2
