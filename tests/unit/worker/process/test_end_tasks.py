"""Loops that ask the broker end when they are told to."""

from __future__ import annotations

import asyncio

from worker.process.shutdown import end_tasks

LOOPS = 200
SOON_SECONDS = 10


def test_loops_end_although_python_swallows_some_cancellations() -> None:
    """`wait_for` of something that is done at once, cancelled at that moment."""
    is_over = asyncio.Event()

    async def ask_for_ever() -> None:
        while not is_over.is_set():
            await asyncio.wait_for(asyncio.sleep(0), 5)
            await asyncio.sleep(0)

    async def cancel_all() -> None:
        loops = []
        for number in range(LOOPS):
            loops.append(asyncio.create_task(ask_for_ever()))
            for _ in range(number % 7):
                await asyncio.sleep(0)
        try:
            async with asyncio.timeout(SOON_SECONDS):
                await end_tasks(loops)
        finally:
            is_over.set()
        assert all(loop.done() for loop in loops)

    asyncio.run(cancel_all())
