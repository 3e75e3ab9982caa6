"""Lets many callers share one round trip to the broker.

Most of what a command costs the gateway is the client library's work for a round trip. Callers that
ask in the same turn of the event loop share one; a caller who is alone waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.broker.connection import broker_errors

Question = TypeVar("Question")
Answer = TypeVar("Answer")

LONGEST_SECONDS = 1.8
"""A read that times out is tried again on a new connection, which may time out as well: longer than
an HTTP client should wait to hear that the broker is down."""


class Batch(Generic[Question, Answer]):
    """Asks `send` for the answers to many questions at once.

    Args:
        send: takes questions and gives as many answers, in their order; an answer that is an
            exception is raised for its caller alone.
    """

    def __init__(
        self, send: Callable[[list[Question]], Awaitable[Sequence[Answer | Exception]]]
    ) -> None:
        self._send = send
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question) -> Answer:
        """The answer to `question`.

        Raises:
            BrokerUnavailableError: the broker does not answer, or refuses.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((question, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._start_sending)
        with broker_errors():
            return await future

    def _start_sending(self) -> None:
        callers, self._waiting = self._waiting, []
        task = asyncio.create_task(self._send_for(callers))
        self._sending.add(task)  # the event loop itself keeps none
        task.add_done_callback(self._sending.discard)

    async def _send_for(self, callers: list[tuple[Question, asyncio.Future[Answer]]]) -> None:
        answers: Sequence[Answer | Exception]
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                answers = await self._send([question for question, _ in callers])
        except TimeoutError:
            answers = [RedisTimeoutError("no answer")] * len(callers)
        except Exception as error:  # noqa: BLE001 (goes to each caller)
            answers = [error] * len(callers)
        for (_, future), answer in zip(callers, answers, strict=True):
            if future.done():
                continue  # the caller has gone away
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
