"""After the hour, here two seconds, nothing of a request is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.stack import Stack, eventually

SECONDS = "2"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    settings = {"engine": "fake", "fake_step_seconds": "0.01", "retention_seconds": SECONDS}
    with Stack(tmp_path, **settings) as stack:
        stack.start_gateway()
        yield stack


def test_ended_requests_and_their_videos_expire_and_waiting_ones_do_not(stack: Stack) -> None:
    worker = stack.start_worker()
    http = stack.http()

    def submit(prompt: str) -> str:
        answer = http.post("/v2/mochi-1", json={"prompt": prompt, "frames": 1, "steps": 10})
        return str(answer.json()["request_id"])

    done, failed = submit("a pond"), submit("fake:fail no")
    video = eventually(lambda: http.get(f"/v2/requests/{done}").json().get("output"))
    path = urlsplit(video)._replace(scheme="", netloc="").geturl()
    assert http.get(path).status_code == 200
    eventually(lambda: http.get(f"/v2/requests/{failed}").status_code == 422)

    def answers(request_id: str) -> set[int]:
        paths = [
            f"/v2/requests/{request_id}/status",
            f"/v2/requests/{request_id}",
            f"/v1/requests/{request_id}",
        ]
        return {http.get(path).status_code for path in paths}

    eventually(lambda: answers(done) == answers(failed) == {404}, seconds=5)
    assert http.get(path).status_code == 404
    eventually(lambda: not stack.outputs(), seconds=10)
    worker.terminate()
    worker.wait()
    keys = {str(key) for key in stack.redis.keys("*")}
    assert not [key for key in keys if done in key or failed in key]
    assert keys <= {
        "mochi:keys", "mochi:link-secret", "mochi:sequence", "rq:queues",
    }  # fmt: skip

    waits = submit("a pond")
    with pytest.raises(AssertionError, match="not within"):
        eventually(lambda: answers(waits) != {200}, seconds=2 * float(SECONDS))
    stack.start_worker()
    eventually(lambda: http.get(f"/v2/requests/{waits}").json()["status"] == "COMPLETED")
