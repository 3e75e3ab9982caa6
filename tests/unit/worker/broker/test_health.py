"""What the log says of the broker, told by a process that asks it over and over."""

from __future__ import annotations

import pytest
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from worker.broker.connection import broker_errors
from worker.broker.health import BrokerLog
from worker.errors import BrokerUnavailableError

ADDRESS = "redis://broker:6379"


def failure(error: Exception | str) -> BrokerUnavailableError:
    """What a call raises."""
    try:
        with broker_errors():
            raise RedisConnectionError(error) if isinstance(error, str) else error
    except BrokerUnavailableError as raised:
        return raised


def test_each_reason_of_a_silence_is_said_once_and_the_end_of_it() -> None:
    broker_log = BrokerLog("redis://ann:hunter2@broker:6379?x=hunter2")
    with capture_logs() as logs:
        broker_log.connected()
        for reason in ("refused", "down", "refused", "down"):
            broker_log.disconnected(failure(reason))
        news = [broker_log.is_new]
        broker_log.connected()
        news.append(broker_log.is_new)
        broker_log.connected()
        broker_log.disconnected(failure("refused"))
    assert news == [True, False]
    assert all(line["address"] == ADDRESS for line in logs)
    assert [(line["event"], line.get("reason")) for line in logs] == [
        ("broker.silent", "refused"),
        ("broker.silent", "down"),
        ("broker.back", None),
        ("broker.silent", "refused"),
    ]


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (RedisConnectionError("refused"), "broker.silent"),
        (AuthenticationError("WRONGPASS invalid username-password pair"), "broker.refused"),
        (ResponseError("ERR unknown command"), "broker.refused"),
    ],
)
def test_a_refusal_is_not_called_a_silence(error: Exception, event: str) -> None:
    with capture_logs() as logs:
        BrokerLog(ADDRESS).disconnected(failure(error))
    assert [line["event"] for line in logs] == [event]


def test_dangers_are_said_once_and_again_when_they_change() -> None:
    broker_log = BrokerLog(ADDRESS)
    with capture_logs() as logs:
        for dangers in (["a"], ["a"], ["a", "b"], [], ["b"]):
            broker_log.warn(dangers)
    assert [line["dangers"] for line in logs] == [["a"], ["a", "b"], ["b"]]


def test_a_failure_without_words_has_its_name_for_a_reason() -> None:
    assert failure("").reason == "ConnectionError"
    assert BrokerUnavailableError("gone").reason == "gone"
