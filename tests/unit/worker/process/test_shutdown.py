from __future__ import annotations

import pytest

from worker.process import shutdown
from worker.process.shutdown import DRAIN, Stop


def test_signals_that_come_together_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stop()
    for _ in range(3):
        stop.ask()
        assert stop.draining
        assert not stop.urgent
    monkeypatch.setattr(shutdown, "TOGETHER_SECONDS", 0.0)
    stop.ask(DRAIN)
    assert not stop.urgent
    stop.ask()
    assert stop.urgent
