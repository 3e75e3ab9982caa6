"""Abandons a wait when the client hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request


async def ends_before_disconnect(request: Request, wait: Coroutine[Any, Any, None]) -> bool:
    """Wait. False if the client hangs up first: `wait` is abandoned.

    The body of `request` has been read. An error of `wait` is raised.
    """
    waiting = asyncio.create_task(wait)
    hang_up = asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait({waiting, hang_up}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            waiting.result()
        return waiting.done()
    finally:
        for task in (waiting, hang_up):
            task.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
