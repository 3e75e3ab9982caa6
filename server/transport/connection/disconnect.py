"""Abandons a wait when the client hangs up: it closes the connection or ends its side of it.

One cannot be told from the other before something is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request


async def ends_before_hang_up(request: Request, wait: Coroutine[Any, Any, None]) -> bool:
    """Wait. False if the client hangs up first: `wait` is abandoned.

    An error of `wait` is raised.
    """
    waiting = asyncio.create_task(wait)
    hang_up = asyncio.create_task(request.state.hang_up.wait())
    try:
        await asyncio.wait({waiting, hang_up}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            waiting.result()
        return waiting.done()
    finally:
        for task in (waiting, hang_up):
            task.cancel()
