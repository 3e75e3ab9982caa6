"""Cancelling all that an owner has waiting or running."""

from __future__ import annotations

from typing import Any

from redis import Redis

from worker import keyspace, scripts
from worker.connection import broker_errors
from worker.job import CANCELLED


def cancel_all(redis: Redis, owner: str, *, retention_seconds: float) -> int:
    """Let every request of `owner` end FAILED. Returns how many did not end by themselves.

    Raises:
        BrokerUnavailableError: some may not be; do it again.
    """
    retention_ms = round(retention_seconds * 1000)
    with broker_errors():
        cancel = redis.register_script(scripts.source("cancel"))
        live: Any = redis.smembers(keyspace.live(owner))
        answers = [
            cancel(keyspace.for_scripts(name), [name, owner, retention_ms, CANCELLED])
            for name in live
        ]
    return answers.count("requested")
