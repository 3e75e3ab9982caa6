"""Clients of the broker: short timeouts for the gateway, endless retries for the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Self, TypeAlias

import redis.asyncio
from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import AbstractBackoff, ConstantBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterCrossSlotError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry
from rq.exceptions import StopRequested
from typing_extensions import override

from worker.broker.program import OLDEST
from worker.broker.schema import ERROR_CODE, READS, SCHEMA_KEY, refusal
from worker.broker.sentinel import async_master_client, master_client
from worker.broker.url import parse, standard
from worker.errors import BrokerUnavailableError, BrokerUnfitError, SchemaError

Client: TypeAlias = Redis
"""For modules that pass a client on and import no redis."""
AsyncClient: TypeAlias = redis.asyncio.Redis

FOR_EVER = -1
GATEWAY_TIMEOUT_SECONDS = 1.0
WORKER_TIMEOUT_SECONDS = 5.0
"""Longer than any blocking read of the worker."""

_UNFIT: tuple[tuple[tuple[type[RedisError], ...], str], ...] = (
    ((AuthenticationError,), "It refuses the user or password in MOCHI_REDIS_URL."),
    (
        (ReadOnlyError,),
        "It is a replica, which takes no writes. MOCHI_REDIS_URL must name the primary, or "
        "Sentinels: sentinel://host:26379/NAME.",
    ),
    (
        (AskError, ClusterCrossSlotError, ClusterDownError),
        "It runs in cluster mode. MOCHI_REDIS_URL must name a server with `cluster-enabled no`.",
    ),
    (
        (OutOfMemoryError,),
        "Its memory is full: raise its `maxmemory`, or delete what others keep in it.",
    ),
    (
        (NoPermissionError,),
        "Its user lacks a permission. See the ACL rule in docs/deploy.md.",
    ),
)
_UNFIT_BY_TEXT = {
    # A server that does not know the first line of our scripts.
    "unexpected symbol near '#'": "It is older than version {0}.{1}: use Redis "
    "{0}.{1} or Valkey.".format(*OLDEST),
    "MISCONF": "It takes no writes, as it cannot write to its disk. Make room there, and read its "
    "log.",
    "is busy running a script": "It is busy with another client's script: see `SCRIPT KILL`.",
    "NOREPLICAS": "It takes no writes, as too few replicas are connected: see its "
    "`min-replicas-to-write`.",
}
"""By a part of the message, of errors for which redis-py has no class."""


class WorkerBackoff(AbstractBackoff):
    """Pauses between retries, growing to a second, until `is_over`.

    Then it raises StopRequested, on which RQ's loop ends normally.
    """

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over

    @override
    def compute(self, failures: int) -> float:
        if self._is_over():
            raise StopRequested
        return min(0.05 * failures, 1.0)

    def __deepcopy__(self, _memo: object) -> Self:
        """redis-py copies it for each connection; all share `is_over`."""
        return self


class _PacksInC:
    """Packs commands with hiredis, ten times as fast as redis-py's asyncio connections do it."""

    pack_command = staticmethod(HiredisRespSerializer().pack)


def connect_gateway(url: str) -> redis.asyncio.Redis:
    """A client that fails within about two seconds, as an HTTP client waits."""
    options = _options(GATEWAY_TIMEOUT_SECONDS, AsyncRetry(ConstantBackoff(0.05), 1))
    address = parse(url)
    if address.sentinels:
        client = async_master_client(address, **options)
    else:
        client = redis.asyncio.Redis.from_url(standard(url), **options)
    pool = client.connection_pool
    pool.connection_class = type("GatewayConnection", (_PacksInC, pool.connection_class), {})
    return client


def connect_worker(
    url: str, *, is_over: Callable[[], bool] = lambda: False, decode_responses: bool = True
) -> Redis:
    """A client that retries for ever: a result took minutes of GPU time.

    Args:
        url: of the broker.
        is_over: checked after each failure; when true, a call raises RQ's StopRequested.
        decode_responses: whether answers are str instead of bytes.
    """
    options = _options(WORKER_TIMEOUT_SECONDS, Retry(WorkerBackoff(is_over), FOR_EVER))
    return _connect(url, options | {"decode_responses": decode_responses})


def connect_briefly(url: str) -> Redis:
    """A client for heartbeats and commands, which are useless when late."""
    return _connect(url, _options(GATEWAY_TIMEOUT_SECONDS, Retry(ConstantBackoff(0.05), 1)))


def _options(timeout: float, retry: Retry | AsyncRetry) -> dict[str, Any]:
    return {
        "decode_responses": True,
        # An id or a record that is not UTF-8 must not stop what reads others with it.
        "encoding_errors": "surrogateescape",
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": retry,
        # A server that has become a replica refuses writes; a new connection finds the master.
        "retry_on_error": [ReadOnlyError],
        # Redis before 7.2 knows no permission for CLIENT SETINFO.
        "driver_info": None,
    }


def _connect(url: str, options: dict[str, Any]) -> Redis:
    address = parse(url)
    return (
        master_client(address, **options)
        if address.sentinels
        else Redis.from_url(standard(url), **options)
    )


@contextmanager
def broker_errors() -> Iterator[None]:
    """Raise a BrokerUnavailableError in place of the Redis client's errors."""
    try:
        yield
    except RedisError as error:
        code, _, number = str(error).partition(" ")
        if code == ERROR_CODE:
            raise SchemaError(refusal(number)) from error
        remedy = _remedy(error)
        if remedy:
            raise BrokerUnfitError(f"The job broker cannot be used. {remedy}") from error
        if isinstance(error, ResponseError):
            raise BrokerUnavailableError(
                "The job broker refuses this call; the server's log has its reason.",
                is_refusal=True,
            ) from error
        raise BrokerUnavailableError(
            "The job broker does not answer; try again in a moment."
        ) from error


def check_schema(redis: Redis) -> None:
    """Refuse a broker whose data this release does not read.

    Raises:
        SchemaError: another release must be run.
        BrokerUnavailableError: the broker does not answer.
    """
    with broker_errors():
        number: Any = redis.get(SCHEMA_KEY)
    if number is not None and number not in map(str, READS):
        raise SchemaError(refusal(number))


def check_schema_at_start(url: str) -> None:
    """The same for a process that starts; a broker that is away is checked by its first script.

    Raises:
        SchemaError: another release must be run.
    """
    try:
        with connect_briefly(url) as redis:
            check_schema(redis)
    except SchemaError:
        raise
    except BrokerUnavailableError:
        return  # the process waits for it, and its log says so


async def broker_time(redis: AsyncClient) -> datetime:
    """The broker's clock in whole seconds, UTC. Raises BrokerUnavailableError."""
    with broker_errors():
        seconds, _ = await redis.time()
    return datetime.fromtimestamp(seconds, UTC)


def _remedy(error: RedisError) -> str:
    """For a broker that answers, and will refuse the next call too; else empty."""
    text = str(error)
    by_kind = (remedy for kinds, remedy in _UNFIT if isinstance(error, kinds))
    by_text = (remedy for part, remedy in _UNFIT_BY_TEXT.items() if part in text)
    return next(chain(by_kind, by_text), "")
