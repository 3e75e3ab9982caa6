"""`up` and a broker that dies, or cannot be restarted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from server.supervisor import children, up
from server.supervisor.up import BrokerKeeper
from worker.broker.embedded import EmbeddedBroker
from worker.errors import BrokerStartError


class DiesAtOnce(EmbeddedBroker):
    """Its server answers once, and then is gone."""

    starts = 0

    def start(self) -> None:
        self.starts += 1

    def is_running(self) -> bool:
        return False

    def end_reason(self) -> str:
        return "Out of memory"


class Full(DiesAtOnce):
    def start(self) -> None:
        super().start()
        raise BrokerStartError("No space left on device")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "BROKER_RESTART_SECONDS", 0.01)
    monkeypatch.setattr(children, "LONGEST_RESTART_SECONDS", 0.03)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


def deaths(broker: DiesAtOnce, count: int) -> list[dict[str, Any]]:
    """The log lines until the broker was started `count` times."""
    keeper = BrokerKeeper(broker)
    with capture_logs() as logs:
        while broker.starts < count:
            keeper.watch()
    return [dict(entry) for entry in logs if entry["event"] == "broker.died"]


def test_a_broker_that_starts_and_dies_at_once_is_restarted_after_longer_and_longer(
    tmp_path: Path,
) -> None:
    lines = deaths(DiesAtOnce(tmp_path), 4)
    assert [line["again_in"] for line in lines] == [0.01, 0.02, 0.03, 0.03]
    assert {line["reason"] for line in lines} == {"Out of memory"}


def test_a_broker_that_cannot_be_restarted_is_tried_again(tmp_path: Path) -> None:
    lines = deaths(Full(tmp_path), 3)
    assert [line["again_in"] for line in lines] == [0.01, 0.02, 0.03, 0.03]
    assert [line["reason"] for line in lines[1:]] == ["No space left on device"] * 3


def test_a_broker_that_was_killed_is_restarted_and_the_log_says_how_it_died(
    broker: EmbeddedBroker,
) -> None:
    keeper = BrokerKeeper(broker)
    keeper.watch()
    assert broker._process
    broker._process.kill()
    broker._process.wait()
    with capture_logs() as logs:
        while not broker.is_alive():
            keeper.watch()
    [line] = logs
    assert line["reason"].startswith("Its exit status is -9. Last line of its log: ")
