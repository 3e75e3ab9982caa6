"""HEAD, which `wget --spider`, HAProxy and uptime services send."""

from __future__ import annotations

import httpx2
import pytest

from tests.support.stack import Stack, eventually

OF_THE_MOMENT = {"date", "retry-after"}
"""Headers that may differ between two answers."""


@pytest.fixture(scope="module")
def request_id(server: Stack) -> str:
    """A request that has ended."""
    client = server.http()
    submitted = client.post("/v2/mochi-1", json={"prompt": "a pond", "frames": 1, "steps": 10})
    name = str(submitted.json()["request_id"])
    eventually(lambda: client.get(f"/v2/requests/{name}").json()["status"] == "COMPLETED")
    return name


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/healthz", "/readyz", "/version"),
        *("/metrics", "/v1/get-user-credits", "/v1/usage", "/v1/videos"),
        *("/v2/requests/{}", "/v2/requests/{}/status", "/v1/videos/{}", "/v1/videos/{}/content"),
        *("/v2/requests/unknown", "/unknown"),
    ],
)
def test_head_is_answered_as_get_without_the_body(
    server: Stack, request_id: str, path: str
) -> None:
    client = server.http()
    head, get = (client.request(verb, path.format(request_id)) for verb in ("HEAD", "GET"))
    assert head.content == b""
    assert head.status_code == get.status_code
    if path != "/metrics":  # which counts these requests, too
        assert headers(head) == headers(get)


def test_head_of_a_stream_of_events_ends_at_once(server: Stack) -> None:
    client = server.http()
    submitted = client.post("/v2/mochi-1", json={"prompt": "a pond", "frames": 1, "steps": 75})
    answer = client.head(submitted.json()["response_url"] + "/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert client.get(submitted.json()["status_url"]).is_success  # on the same connection


def test_head_does_not_do_what_another_verb_would(server: Stack) -> None:
    answer = server.http().head("/v2/mochi-1")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def headers(answer: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in OF_THE_MOMENT}
