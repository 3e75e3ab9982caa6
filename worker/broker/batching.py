"""Lets concurrent callers share one round trip to the broker.

Most of what a command costs the gateway is the client library's work for a round trip. Questions of
one turn of the event loop share one, and so do those that arrive while a round trip is under way:
the busier the gateway, the larger its batches. A lone caller does not wait for others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.broker.connection import broker_errors

Question = TypeVar("Question")
Answer = TypeVar("Answer")

COLLECT_SECONDS = 0.01
"""How long questions wait at most for the round trip before theirs."""
LONGEST_SECONDS = 1.8
"""A read that times out is tried again on a new connection, which may time out as well: longer than
an HTTP client should wait to hear that the broker is down."""


class Batch(Generic[Question, Answer]):
    """Answers many questions with one call of `send`.

    Args:
        send: takes questions and gives as many answers, in their order; an answer that is an
            exception is raised for its caller alone.
    """

    def __init__(
        self, send: Callable[[list[Question]], Awaitable[Sequence[Answer | Exception]]]
    ) -> None:
        self._send = send
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._start: asyncio.Handle | None = None
        """Set while questions wait: the call that sends them."""
        self._sending: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question) -> Answer:
        """The answer to `question`.

        Raises:
            BrokerUnavailableError: the broker does not answer, or refuses.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((question, future))
        if self._start is None:
            self._start = (
                loop.call_later(COLLECT_SECONDS, self._start_sending)
                if self._sending
                else loop.call_soon(self._start_sending)
            )
        with broker_errors():
            return await future

    def _start_sending(self) -> None:
        self._start = None
        # One that is cancelled has gone away; as the event loop ends, all have.
        callers = [caller for caller in self._waiting if not caller[1].done()]
        self._waiting = []
        if not callers:
            return
        task = asyncio.create_task(self._send_for(callers))
        self._sending.add(task)  # the event loop itself keeps none
        task.add_done_callback(self._end_sending)

    def _end_sending(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if self._start is not None:
            self._start.cancel()
            self._start_sending()

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
                continue  # its caller was cancelled
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
