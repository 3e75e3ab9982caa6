"""Clients of the broker: impatient for the gateway, patient for the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeAlias

import redis.asyncio
from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import AbstractBackoff, ConstantBackoff
from redis.exceptions import ReadOnlyError, RedisError
from redis.retry import Retry
from rq.exceptions import StopRequested
from typing_extensions import override

from worker.broker.sentinel import async_master_client, master_client
from worker.broker.url import parse
from worker.errors import BrokerUnavailableError

Client: TypeAlias = Redis
"""For modules that pass a client on and import no redis."""
AsyncClient: TypeAlias = redis.asyncio.Redis

FOR_EVER = -1
GATEWAY_TIMEOUT_SECONDS = 1.0
WORKER_TIMEOUT_SECONDS = 5.0
"""Longer than any blocking read of the worker."""


class Patience(AbstractBackoff):
    """Pauses between tries, longer and longer up to a second, until there is no use in another.

    Raises StopRequested then, at which RQ's loop ends in peace.
    """

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over

    @override
    def compute(self, failures: int) -> float:
        if self._is_over():
            raise StopRequested
        return min(0.05 * failures, 1.0)

    def __deepcopy__(self, _memo: object) -> Self:
        """Every connection copies its own; the question is the same for all."""
        return self


def connect_gateway(url: str) -> redis.asyncio.Redis:
    """A client that gives up within about two seconds: an HTTP client waits for the answer."""
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": GATEWAY_TIMEOUT_SECONDS,
        "socket_connect_timeout": GATEWAY_TIMEOUT_SECONDS,
        "retry": AsyncRetry(ConstantBackoff(0.05), 1),
        "retry_on_error": [ReadOnlyError],
    }
    address = parse(url)
    if address.sentinels:
        return async_master_client(address, **options)
    return redis.asyncio.Redis.from_url(url, **options)


def connect_worker(
    url: str, *, is_over: Callable[[], bool] = lambda: False, decode_responses: bool = True
) -> Redis:
    """A client that waits for the broker, as a result worth minutes of GPU time should.

    Args:
        url: where the broker is.
        is_over: asked after each failure; when it says so, a call raises RQ's StopRequested.
        decode_responses: whether answers are text.
    """
    return _connect(
        url,
        decode_responses=decode_responses,
        socket_timeout=WORKER_TIMEOUT_SECONDS,
        socket_connect_timeout=WORKER_TIMEOUT_SECONDS,
        retry=Retry(Patience(is_over), FOR_EVER),
    )


def connect_briefly(url: str) -> Redis:
    """A client for beats and commands, which are of no use when late."""
    return _connect(
        url,
        decode_responses=True,
        socket_timeout=GATEWAY_TIMEOUT_SECONDS,
        socket_connect_timeout=GATEWAY_TIMEOUT_SECONDS,
        retry=Retry(ConstantBackoff(0.05), 1),
    )


def _connect(url: str, **options: Any) -> Redis:  # noqa: ANN401 (redis-py's)
    """A server that was made a replica refuses to write: a new connection may find the master."""
    options |= {"retry_on_error": [ReadOnlyError]}
    address = parse(url)
    return (
        master_client(address, **options) if address.sentinels else Redis.from_url(url, **options)
    )


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn what the Redis client raises into our one error."""
    try:
        yield
    except RedisError as error:
        raise BrokerUnavailableError(
            "The job broker does not answer; try again in a moment."
        ) from error
