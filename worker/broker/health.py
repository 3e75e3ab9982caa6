"""What the log says of the broker: when it is silent and why, when it is back, what it may lose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import structlog

from worker.broker.url import shown
from worker.errors import BrokerUnavailableError

OLDEST_VERSION = 7
"""Of Redis, and of that which Valkey says it is: older ones refuse our scripts."""

_log = structlog.get_logger()


class BrokerLog:
    """One process's contact with the broker, told once of each change."""

    def __init__(self, url: str) -> None:
        self._address = shown(url)
        self._answers: bool | None = None
        self._reasons: set[str] = set()
        self._dangers: list[str] = []

    @property
    def is_new(self) -> bool:
        """Whether it has not answered yet, or not again: after a failover it may be another."""
        return not self._answers

    def connected(self) -> None:
        """It has answered."""
        if self._answers is False:
            _log.warning("broker.back", address=self._address)
        self._answers = True
        self._reasons.clear()

    def disconnected(self, error: BrokerUnavailableError) -> None:
        """It has not, or has refused. Each reason of one silence is said once."""
        if error.reason not in self._reasons:
            _log.warning("broker.silent", address=self._address, reason=error.reason)
        self._answers = False
        self._reasons.add(error.reason)

    def warn(self, dangers: list[str]) -> None:
        """Say what `dangers_of` has found."""
        if dangers and dangers != self._dangers:
            _log.warning("broker.may_lose_jobs", address=self._address, dangers=dangers)
        self._dangers = dangers


def dangers_of(info: Mapping[str, Any], appendfsync: str | None) -> list[str]:
    """Why a broker may lose what it has acknowledged, each with the remedy; none if it keeps it.

    Args:
        info: what its INFO says.
        appendfsync: None when it does not tell.
    """
    found = []
    version = str(info.get("redis_version", OLDEST_VERSION))
    number = re.match(r"\d+", version)
    if number and int(number[0]) < OLDEST_VERSION:
        found.append(f"Its version is {version}, and scripts need {OLDEST_VERSION} or later.")
    if not info.get("aof_enabled", 1):
        found.append("A restart loses requests: set `appendonly yes` and `appendfsync always`.")
    elif appendfsync not in {None, "always"}:
        found.append(f"A crash loses requests: set `appendfsync always`; it is `{appendfsync}`.")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            f"A full memory loses requests: set `maxmemory-policy noeviction`; it is `{policy}`."
        )
    return found
