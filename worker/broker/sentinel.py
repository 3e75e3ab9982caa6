"""Clients of the master that Sentinels name; after a failover the next command finds the new one.

Pools and connections are redis-py's; only the discovery is ours. redis-py's own loses a Sentinel
from its list for good when two calls ask at once and the first Sentinel does not answer.
"""

from __future__ import annotations

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
    pool = _Pool(address.name, _Sentinels(address), **_merged(options, address))  # type: ignore[no-untyped-call]
    return Redis.from_pool(pool)


def async_master_client(address: Address, **options: Any) -> redis.asyncio.Redis:  # noqa: ANN401
    pool = _AsyncPool(address.name, _AsyncSentinels(address), **_merged(options, address))  # type: ignore[no-untyped-call]
    return redis.asyncio.Redis.from_pool(pool)


class _Sentinels:
    """Asks Sentinels in turn, first the last one that knew the master."""

    def __init__(self, address: Address) -> None:
        retry = Retry(NoBackoff(), 0)
        self._clients = [
            (at, Redis(host=at[0], port=at[1], retry=retry, **_sentinel_options(address)))
            for at in address.sentinels
        ]

    def discover_master(self, name: str) -> tuple[str, int]:
        """Host and port.

        Raises:
            MasterNotFoundError: no Sentinel knows a master that is up.
        """
        reasons = []
        for asked in self._clients:
            (host, port), client = asked
            try:
                state = _read(client.sentinel_masters(), name)
                self._clients = _with_first(self._clients, asked)
                return state["ip"], state["port"]
            except RedisError as error:
                reasons.append(f"Sentinel {host}:{port}: {error}")
        raise MasterNotFoundError("; ".join(reasons))

    def close(self) -> None:
        for _, client in self._clients:
            client.close()


class _AsyncSentinels:
    """The same for asyncio."""

    def __init__(self, address: Address) -> None:
        retry = AsyncRetry(NoBackoff(), 0)
        options = _sentinel_options(address)
        self._clients = [
            (at, redis.asyncio.Redis(host=at[0], port=at[1], retry=retry, **options))
            for at in address.sentinels
        ]

    async def discover_master(self, name: str) -> tuple[str, int]:
        reasons = []
        for asked in self._clients:
            (host, port), client = asked
            try:
                state = _read(await client.sentinel_masters(), name)
                self._clients = _with_first(self._clients, asked)
                return state["ip"], state["port"]
            except RedisError as error:
                reasons.append(f"Sentinel {host}:{port}: {error}")
        raise MasterNotFoundError("; ".join(reasons))

    async def aclose(self) -> None:
        for _, client in self._clients:
            await client.aclose()


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


def _sentinel_options(address: Address) -> dict[str, Any]:
    limits = {"socket_timeout": SENTINEL_SECONDS, "socket_connect_timeout": SENTINEL_SECONDS}
    return limits | address.sentinel_options


def _read(masters: Any, name: str) -> dict[str, Any]:  # noqa: ANN401 (redis-py's)
    state: dict[str, Any] | None = masters.get(name)
    if state is None:
        raise MasterNotFoundError(f"it knows no master {name}.")
    if state["is_sdown"] or state["is_odown"] or not state["is_master"]:
        raise MasterNotFoundError(f"the master {name} is down.")
    return state


def _with_first(clients: list[Any], first: Any) -> list[Any]:  # noqa: ANN401 (sync or async)
    """A new list, as another call may iterate over the old one."""
    return [first, *(client for client in clients if client is not first)]
