"""The gateway installs and runs on a machine that has nothing of a worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from redis import Redis

from server.keys.record import NewKey
from server.keys.store import create_key

SCRIPT = """
import asyncio, json, sys
from importlib.abc import MetaPathFinder

BLOCKED = {"torch", "diffusers", "transformers", "accelerate", "numpy", "PIL", "imageio_ffmpeg",
           "huggingface_hub"}

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

import httpx2
from server.cli.main import COMMANDS, load
from server.app import create_app
from server.settings import ServerSettings
from worker.broker.connection import connect_gateway

async def main(data_dir, redis_url, key):
    app = create_app(
        ServerSettings(data_dir=data_dir, redis_url=redis_url), connect_gateway(redis_url)
    )
    async with app.router.lifespan_context(app), httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://gateway", headers={"x-api-key": key}
    ) as client:
        submitted = await client.post("/v2/mochi-1", json={"prompt": "a pond"})
        status = await client.get(submitted.json()["status_url"])
        await client.get("/openapi.json")
        print(json.dumps(status.json()))

asyncio.run(main(*sys.argv[1:]))
assert all(load(name) for name in COMMANDS)
assert not BLOCKED & set(sys.modules)
"""


def test_it_serves_with_the_workers_libraries_blocked(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    key = create_key(redis, NewKey(name="test"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path), redis_url, key],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout.splitlines()[-1])  # after what it logs
    assert (status["status"], status["queue_position"]) == ("QUEUED", 1)
