"""Sends the commands of many callers to the broker in one go.

Most of what a command costs the gateway is the client library's work for a round trip. Callers that
ask in the same turn of the event loop share one; a caller who is alone waits for nobody.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.connection import broker_errors

LONGEST_SECONDS = 1.8
"""A read that times out is tried again on a new connection, which may time out as well: longer than
an HTTP client should wait to hear that the broker is down."""

Command = tuple[str | bytes | int | float, ...]


class Batch:
    """Commands are not a transaction: those of others may come in between."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[tuple[tuple[Command, ...], asyncio.Future[list[Any]]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def execute(self, *commands: Command) -> list[Any]:
        """The answers to `commands`, in their order.

        Raises:
            BrokerUnavailableError: the broker does not answer, or refused one of them.
        """
        loop = asyncio.get_running_loop()
        answers: asyncio.Future[list[Any]] = loop.create_future()
        self._waiting.append((commands, answers))
        if len(self._waiting) == 1:
            loop.call_soon(self._send_all)
        with broker_errors():
            return await answers

    def _send_all(self) -> None:
        callers, self._waiting = self._waiting, []
        task = asyncio.create_task(self._send(callers))
        self._sending.add(task)  # the event loop itself keeps none
        task.add_done_callback(self._sending.discard)

    async def _send(
        self, callers: list[tuple[tuple[Command, ...], asyncio.Future[list[Any]]]]
    ) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for commands, _ in callers:
            for command in commands:
                pipeline.execute_command(*command)
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                results = iter(await pipeline.execute(raise_on_error=False))
        except TimeoutError:
            results = iter([RedisTimeoutError("no answer")] * sum(len(one) for one, _ in callers))
        except Exception as error:  # noqa: BLE001 (goes to each caller)
            results = iter([error] * sum(len(commands) for commands, _ in callers))
        for commands, answers in callers:
            _settle(answers, [next(results) for _ in commands])


def _settle(answers: asyncio.Future[list[Any]], results: list[Any]) -> None:
    if answers.done():
        return  # the caller has gone away
    error = next((result for result in results if isinstance(result, Exception)), None)
    if error is not None:
        answers.set_exception(error)
    else:
        answers.set_result(results)
