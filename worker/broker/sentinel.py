"""Clients of the master that Sentinels name; after a failover the next command finds the new one.

All but the discovery is redis-py's. Its own discovery loses a Sentinel from its list for good when
two calls ask at once and the first Sentinel does not answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError
from typing_extensions import override

from worker.broker.url import Address

SENTINEL_SECONDS = 0.4
"""Timeout of one Sentinel. A dead host may have run both the master and a Sentinel; the next one is
asked while an HTTP client still waits."""


def master_client(address: Address, **options: Any) -> Redis:  # noqa: ANN401 (redis-py's)
    """A client of the master. `options` are redis-py's; those of the URL override them."""
    sentinels = _Sentinels(address.sentinels, sentinel_kwargs=_of(address, Retry(NoBackoff(), 0)))  # type: ignore[no-untyped-call]
    return Redis.from_pool(_Pool(address.name, sentinels, **_merged(options, address)))  # type: ignore[no-untyped-call]


def async_master_client(address: Address, **options: Any) -> redis.asyncio.Redis:  # noqa: ANN401 (those of redis-py)
    retry = AsyncRetry(NoBackoff(), 0)
    sentinels = _AsyncSentinels(address.sentinels, sentinel_kwargs=_of(address, retry))  # type: ignore[no-untyped-call]
    pool = _AsyncPool(address.name, sentinels, **_merged(options, address))  # type: ignore[no-untyped-call]
    return redis.asyncio.Redis.from_pool(pool)


class _Sentinels(redis.sentinel.Sentinel):
    """Asks Sentinels in turn, first the last one that knew the master."""

    @override
    def discover_master(self, service_name: str) -> tuple[str, int]:
        reasons: list[str] = []
        for asked in self.sentinels:
            with _errors_to(reasons, asked):
                return _accepted(self, asked, asked.sentinel_masters(), service_name)
        raise MasterNotFoundError("; ".join(reasons))


class _AsyncSentinels(redis.asyncio.sentinel.Sentinel):
    """The same for asyncio."""

    @override
    async def discover_master(self, service_name: str) -> tuple[str, int]:
        reasons: list[str] = []
        for asked in self.sentinels:
            with _errors_to(reasons, asked):
                return _accepted(self, asked, await asked.sentinel_masters(), service_name)
        raise MasterNotFoundError("; ".join(reasons))


class _Pool(redis.sentinel.SentinelConnectionPool):
    """Closes its Sentinels as well."""

    @override
    def close(self) -> None:
        super().close()
        self.sentinel_manager.close()


class _AsyncPool(redis.asyncio.sentinel.SentinelConnectionPool):
    """Closes its Sentinels as well."""

    @override
    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def _merged(options: dict[str, Any], address: Address) -> dict[str, Any]:
    of_url = {key: value for key, value in address.options.items() if key != "connection_class"}
    return options | of_url | {"ssl": address.sentinel_options["ssl"]}


def _of(address: Address, retry: Retry | AsyncRetry) -> dict[str, Any]:
    limits = {"socket_timeout": SENTINEL_SECONDS, "socket_connect_timeout": SENTINEL_SECONDS}
    return limits | address.sentinel_options | {"retry": retry}


@contextmanager
def _errors_to(reasons: list[str], sentinel: Any) -> Iterator[None]:  # noqa: ANN401 (sync or async)
    try:
        yield
    except RedisError as error:
        at = sentinel.get_connection_kwargs()
        reasons.append(f"Sentinel {at['host']}:{at['port']}: {error}")


def _accepted(ours: Any, asked: Any, masters: Any, name: str) -> tuple[str, int]:  # noqa: ANN401 (sync or async)
    """The master's host and port; from now on, `asked` is the first that `ours` asks."""
    state = masters.get(name)
    if state is None:
        raise MasterNotFoundError(f"it knows no master {name}.")
    if state["is_sdown"] or state["is_odown"] or not state["is_master"]:
        raise MasterNotFoundError(f"the master {name} is down.")
    # A new list, as another call may iterate over the old one.
    ours.sentinels = [asked, *(other for other in ours.sentinels if other is not asked)]
    return state["ip"], state["port"]
