"""Connections to the broker that lose a reply on request."""

from __future__ import annotations

from typing import Any

import redis.asyncio


class Forgetful(redis.UnixDomainSocketConnection):
    """Loses the next reply on request: the command was executed, and the client cannot know."""

    lose_next = False

    def read_response(self, *args: Any, **options: Any) -> Any:
        response = super().read_response(*args, **options)
        if Forgetful.lose_next:
            Forgetful.lose_next = False
            raise redis.ConnectionError("the reply is lost")
        return response


class AsyncForgetful(redis.asyncio.UnixDomainSocketConnection):
    lose_next = False

    async def read_response(self, *args: Any, **options: Any) -> Any:
        response = await super().read_response(*args, **options)
        if AsyncForgetful.lose_next:
            AsyncForgetful.lose_next = False
            raise redis.ConnectionError("the reply is lost")
        return response
