"""Loops that ask the broker end when they are told to."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from worker.broker.connection import pause

SOON_SECONDS = 10


def test_a_loop_ends_although_its_question_swallowed_the_cancellation() -> None:
    async def ask_for_ever() -> None:
        for _ in range(2):
            with suppress(asyncio.CancelledError):  # as `asyncio.wait_for` of Python 3.11 may
                await asyncio.sleep(3600)
            await pause(0)

    async def cancel() -> None:
        loop = asyncio.create_task(ask_for_ever())
        await asyncio.sleep(0)
        loop.cancel()
        await asyncio.wait([loop], timeout=1)
        assert loop.cancelled()

    asyncio.run(cancel())


def test_a_loop_that_goes_on_is_not_ended() -> None:
    async def ask_twice() -> int:
        for _ in range(2):
            await pause(0)
        return 2

    assert asyncio.run(ask_twice()) == 2


def test_what_python_swallows_is_seen() -> None:
    """`wait_for` of something that is done at once, cancelled at that moment."""
    rounds = 200
    is_over = asyncio.Event()

    async def ask_for_ever() -> None:
        while not is_over.is_set():
            await asyncio.wait_for(asyncio.sleep(0), 5)
            await pause(0)

    async def cancel_all() -> None:
        loops = []
        for number in range(rounds):
            loops.append(asyncio.create_task(ask_for_ever()))
            for _ in range(number % 7):
                await asyncio.sleep(0)
            loops[-1].cancel()
        await asyncio.wait(loops, timeout=SOON_SECONDS)
        ended = sum(loop.cancelled() for loop in loops)
        is_over.set()
        assert ended == rounds

    asyncio.run(cancel_all())
