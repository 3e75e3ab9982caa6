"""The files of the page, while an upgrade replaces them under a running gateway."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mochi_server

ROOT = Path(mochi_server.__file__).parent
SCRIPT = """
import asyncio, json, sys
import httpx2
from pathlib import Path
from shutil import rmtree
import server.page
from server.app import create_app
from server.settings import ServerSettings
from worker.broker.connection import connect_gateway

async def main(data_dir, redis_url="redis://127.0.0.1:1/0"):
    settings = ServerSettings(data_dir=data_dir, redis_url=redis_url)
    app = create_app(settings, connect_gateway(redis_url))
    rmtree(Path(server.page.__file__).parent / "assets")
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answers = []
        for name in ("page.js", "styles/page.css", "nowhere.js"):
            first = await client.get(f"/page/{name}")
            known = {"if-none-match": first.headers.get("etag", "")}
            again = await client.get(f"/page/{name}", headers=known)
            kind = first.headers["content-type"].partition(";")[0].partition("/")[2]
            answers.append([first.status_code, again.status_code, kind])
    print(json.dumps(answers))

asyncio.run(main(sys.argv[1]))
"""


def test_they_are_read_at_the_start(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "server", tmp_path / "server")
    for name in ("models", "worker"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "data")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [
        [200, 304, "javascript"],
        [200, 304, "css"],
        [404, 404, "json"],
    ]
