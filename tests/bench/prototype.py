"""The least that FastAPI and Redis can do for the same calls, to compare the gateway with.

No keys, no validation, no limits, no guards: a submit writes a hash and a list entry, a status
reads a hash. What the gateway is slower than this is the price of what it does.
"""

from __future__ import annotations

import os
from uuid import uuid4

import redis.asyncio
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse

BROKER_VARIABLE = "PROTOTYPE_REDIS_URL"
PORT_VARIABLE = "PROTOTYPE_PORT"


def create_app(client: redis.asyncio.Redis) -> FastAPI:
    """Two routes."""
    app = FastAPI()

    @app.post("/v2/mochi-1")
    async def submit(request: Request) -> JSONResponse:
        request_id = str(uuid4())
        params = await request.body()
        async with client.pipeline() as pipeline:
            pipeline.hset(f"request:{request_id}", mapping={"status": "QUEUED", "params": params})
            pipeline.rpush("queue", request_id)
            await pipeline.execute()
        return JSONResponse({"request_id": request_id, "status": "QUEUED"})

    @app.get("/v2/requests/{request_id}/status")
    async def status(request_id: str) -> JSONResponse:
        record = await client.hgetall(f"request:{request_id}")
        return JSONResponse({"request_id": request_id, "status": record["status"]})

    return app


if __name__ == "__main__":
    uvicorn.run(
        create_app(
            redis.asyncio.Redis.from_url(os.environ[BROKER_VARIABLE], decode_responses=True)
        ),
        port=int(os.environ[PORT_VARIABLE]),
        access_log=False,
        log_level="warning",
    )
