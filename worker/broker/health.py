"""Logs the broker's availability, and its settings that may lose jobs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import structlog

from worker.broker.program import age_fault
from worker.broker.url import shown
from worker.errors import BrokerUnavailableError

_log = structlog.get_logger()


class BrokerLog:
    """Logs each change of one process's connection to the broker once."""

    def __init__(self, url: str) -> None:
        self._address = shown(url)
        self._answers: bool | None = None
        self._reasons: set[str] = set()
        self._dangers: list[str] = []

    @property
    def is_new(self) -> bool:
        """Whether its settings should be checked: it is new, or may be another after a failover."""
        return not self._answers

    def connected(self) -> None:
        if self._answers is False:
            _log.warning("broker.back", address=self._address)
        self._answers = True
        self._reasons.clear()

    def disconnected(self, error: BrokerUnavailableError) -> None:
        """Log each reason once per outage."""
        if error.reason not in self._reasons:
            event = "broker.refused" if error.has_answered else "broker.silent"
            _log.warning(event, address=self._address, reason=error.reason)
        self._answers = False
        self._reasons.add(error.reason)

    def warn(self, dangers: list[str]) -> None:
        """Log the findings of `dangers_in`."""
        if dangers and dangers != self._dangers:
            _log.warning("broker.may_lose_jobs", address=self._address, dangers=dangers)
        self._dangers = dangers


def dangers_in(answers: Sequence[Any]) -> list[str]:
    """Settings with which a broker may lose acknowledged writes, each with the remedy.

    Args:
        answers: to INFO and to CONFIG GET appendfsync; exceptions where the broker refused. A
            setting that it does not give counts as right.
    """
    info, config = answers
    if isinstance(info, Exception):
        return []
    sync = "always" if isinstance(config, Exception) else config.get("appendfsync", "always")
    found = []
    number = re.match(r"(\d+)\.(\d+)", str(info.get("redis_version", "")))
    if number and (fault := age_fault((int(number[1]), int(number[2])))):
        found.append(f"{fault[0].upper()}{fault[1:]}.")
    if not info.get("aof_enabled", 1):
        found.append("A restart loses requests: set `appendonly yes` and `appendfsync always`.")
    elif sync != "always":
        found.append(f"A crash loses requests: set `appendfsync always`; it is `{sync}`.")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            f"A full memory loses requests: set `maxmemory-policy noeviction`; it is `{policy}`."
        )
    return found
