"""Bodies that are unusual and taken, and what the result says of names that were ignored."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.support.stack import Stack, eventually
from tests.support.wire import refusal

POND = {"prompt": "a pond", "frames": 1, "steps": 10}
JSON = {"content-type": "application/json"}
SUBMITS = ["/v1/mochi-1", "/v2/mochi-1"]


def result(stack: Stack, body: bytes) -> dict[str, Any]:
    """Of a request with this body, when it has ended."""
    client = stack.http()
    submitted = client.post("/v2/mochi-1", content=body, headers=JSON)
    assert submitted.status_code == 200, submitted.text
    url = submitted.json()["response_url"]
    eventually(lambda: client.get(url).json()["status"] == "COMPLETED")
    answer: dict[str, Any] = client.get(url).json()
    return answer


def test_a_byte_order_mark_before_json_is_ignored(server: Stack) -> None:
    assert result(server, b"\xef\xbb\xbf" + json.dumps(POND).encode())["prompt"] == "a pond"


@pytest.mark.parametrize("path", [*SUBMITS, "/v1/videos"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP, identity"])
def test_a_compressed_body_is_refused_with_the_reason(
    server: Stack, path: str, encoding: str
) -> None:
    body = gzip.compress(json.dumps(POND).encode())
    answer = server.http().post(path, content=body, headers=JSON | {"content-encoding": encoding})
    error = answer.json()["error"]
    assert answer.status_code == 415
    assert "`Content-Encoding`" in (error if isinstance(error, str) else error["message"])


def test_an_encoding_that_changes_nothing_is_taken(server: Stack) -> None:
    headers = {"content-encoding": "identity"}
    assert server.http().post("/v2/mochi-1", json=POND, headers=headers).is_success


def test_the_result_names_what_was_ignored_and_what_was_meant(server: Stack) -> None:
    body = POND | {"num_frames": 9, "base64": True, "\ud800": 1}
    assert result(server, json.dumps(body).encode())["warnings"][:3] == [
        "`num_frames` is unknown and was ignored; did you mean `frames`?",
        "`base64` is unknown and was ignored",
        "`?` is unknown and was ignored",
    ]


def test_the_videos_route_takes_the_names_of_other_servers(server: Stack) -> None:
    client = server.http()
    named = {"num_frames": 9, "num_inference_steps": 10, "guidance": 3}
    as_json = client.post("/v1/videos", json={"prompt": "a pond", **named})
    parts = {name: (None, str(value)) for name, value in {"prompt": "a pond", **named}.items()}
    as_form = client.post("/v1/videos", files=parts)
    for answer in (as_json, as_form):
        assert "x-ignored-parameters" not in answer.headers
        params = json.loads(server.record(answer.json()["id"])["params"])
        assert (params["frames"], params["steps"], params["guidance_scale"]) == (9, 10, 3)
    both = client.post("/v1/videos", json={**POND, "num_frames": 9})
    assert both.json()["error"]["message"] == "Give `num_frames` or `frames`, not both."
    assert refusal(client.post("/v2/mochi-1", json={"prompt": 1, "num_frames": 9}), 400)
