"""Clients of the broker: impatient for the gateway, patient for the worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis.asyncio
from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff, ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from worker.errors import BrokerUnavailableError

FOR_EVER = -1
GATEWAY_TIMEOUT_SECONDS = 1.0
WORKER_TIMEOUT_SECONDS = 5.0
"""Longer than any blocking read of the worker."""


def connect_gateway(url: str) -> redis.asyncio.Redis:
    """A client that gives up within about two seconds: an HTTP client waits for the answer."""
    return redis.asyncio.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=GATEWAY_TIMEOUT_SECONDS,
        socket_connect_timeout=GATEWAY_TIMEOUT_SECONDS,
        retry=AsyncRetry(ConstantBackoff(0.05), 1),
    )


def connect_worker(url: str, *, decode_responses: bool = True) -> Redis:
    """A client that never gives up: a result worth minutes of GPU time waits for the broker."""
    return Redis.from_url(
        url,
        decode_responses=decode_responses,
        socket_timeout=WORKER_TIMEOUT_SECONDS,
        socket_connect_timeout=WORKER_TIMEOUT_SECONDS,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), FOR_EVER),
    )


def connect_briefly(url: str) -> Redis:
    """A client for beats and commands, which are of no use when late."""
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=GATEWAY_TIMEOUT_SECONDS,
        socket_connect_timeout=GATEWAY_TIMEOUT_SECONDS,
        retry=Retry(ConstantBackoff(0.05), 1),
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
