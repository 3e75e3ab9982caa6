"""`/readyz` lists what is missing."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from server.app import create_app
from server.settings import ServerSettings
from tests.support.wire import call
from worker.broker.connection import connect_gateway
from worker.outputs import local


def test_a_full_disk_is_named_before_the_broker_that_has_died_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LEAST_FREE_BYTES", 1 << 60)
    (tmp_path / "outputs").mkdir()
    url = f"unix://{tmp_path}/gone.sock"
    app = create_app(ServerSettings(data_dir=tmp_path, redis_url=url), connect_gateway(url))
    [ready] = call(app, httpx.Request("GET", "http://test/readyz"))
    assert ready.status_code == 503
    disk, broker = ready.json()["missing"]
    assert "MiB free" in disk
    assert "The broker does not answer" in broker
