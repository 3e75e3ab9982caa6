"""Abandons a wait when the client hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request


class ClientDisconnected(Exception):  # noqa: N818 (not an error: a client may hang up)
    """The client has hung up."""


async def unless_disconnected(request: Request, wait: Coroutine[Any, Any, None]) -> None:
    """Wait, but not for longer than the client. The body of `request` has been read.

    Raises:
        ClientDisconnected: the client has gone; `wait` is abandoned.
    """
    waiting = asyncio.create_task(wait)
    hang_up = asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait({waiting, hang_up}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnected
        waiting.result()
    finally:
        for task in (waiting, hang_up):
            task.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
