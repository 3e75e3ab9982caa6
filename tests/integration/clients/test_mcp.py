"""`/mcp` with the client of the official package, over HTTP."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from redis import Redis
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from models.mock.scenario import SCENARIO
from models.request.params import RequestParams
from server.api.poller import Poller
from server.api.routes import mcp_tool
from server.api.submit.submission import Submission
from server.app import create_app
from server.keys import lookup
from server.keys.record import NewKey
from server.keys.store import create_key
from server.settings import ServerSettings
from server.transport import body
from tests.support.jobs import live
from tests.support.stack import Stack, eventually
from tests.support.wire import call, refusal
from worker.broker.connection import connect_gateway
from worker.job import Job
from worker.store.submits import Accepted
from worker.store.worker_side import WorkerStore

POND = {"prompt": "a pond", "frames": 7, "steps": 10}
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "generate_video", "arguments": POND},
}
ACCEPT = {"accept": "application/json, text/event-stream"}
MODES = ["auto", "legacy"]
"""The protocol of 2026, and the one before it."""


@asynccontextmanager
async def connected(
    url: str, key: str, mode: str = "auto", **headers: str
) -> AsyncIterator[Client]:
    headers |= {"x-api-key": key}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        transport = streamable_http_client(f"{url}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


def generate(
    stack: Stack, arguments: dict[str, Any], key: str = "", mode: str = "auto", **headers: str
) -> Any:
    """The result of the tool."""

    async def call() -> Any:
        async with connected(stack.url, key or stack.key(), mode, **headers) as client:
            return await client.call_tool("generate_video", arguments)

    return asyncio.run(call())


def refused(stack: Stack, arguments: dict[str, Any], key: str = "", **headers: str) -> str:
    result = generate(stack, arguments, key, **headers)
    assert result.is_error
    (content,) = result.content
    return str(content.text)


@pytest.mark.parametrize("mode", MODES)
def test_the_tool_has_the_parameters_with_their_ranges(server: Stack, mode: str) -> None:
    async def listed() -> Any:
        async with connected(server.url, server.key(), mode) as client:
            return (await client.list_tools()).tools

    (tool,) = asyncio.run(listed())
    assert tool.name == "generate_video"
    assert set(tool.input_schema["properties"]) == set(RequestParams.model_fields)
    assert tool.input_schema["properties"]["steps"]["maximum"] == 75
    assert tool.input_schema["required"] == ["prompt"]


@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_the_link_with_the_facts(server: Stack, mode: str) -> None:
    result = generate(server, POND, mode=mode)
    assert not result.is_error
    facts = result.structured_content
    assert (facts["status"], facts["seed"], facts["prompt"]) == ("COMPLETED", 985521, "a pond")
    assert facts["output"].startswith(server.url)
    assert httpx2.get(facts["output"]).content[4:8] == b"ftyp"
    link = next(content for content in result.content if content.type == "resource_link")
    assert (link.uri, link.mime_type) == (facts["output"], "video/mp4")
    assert link.size == facts["video"]["file_size"]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Long enough to be followed and cancelled."""
    folder = tmp_path_factory.mktemp("mcp")
    with Stack(folder, engine="fake", fake_step_seconds="0.1", preview_steps="2") as stack:
        stack.start_gateway(price_base="2")
        stack.start_worker()
        yield stack


@pytest.mark.parametrize("mode", MODES)
def test_progress_grows_and_the_last_preview_comes_with_the_result(slow: Stack, mode: str) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    async def call() -> Any:
        async with connected(slow.url, slow.key(), mode) as client:
            return await client.call_tool(
                "generate_video", POND | {"steps": 20}, progress_callback=note
            )

    result = asyncio.run(call())
    progress = [each for each, _, _ in told]
    assert len(told) > 2
    assert progress == sorted(set(progress))
    assert {total for _, total, _ in told} == {100}
    assert "denoising, step " in str(told)
    (picture,) = [content for content in result.content if content.type == "image"]
    assert picture.mime_type.startswith("image/")
    assert picture.data


def error_codes(stack: Stack, key: str) -> list[str]:
    videos = stack.http(key).get("/v1/videos").json()["data"]
    return [video["error"] and video["error"]["code"] for video in videos]


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_gives_up_cancels(slow: Stack, mode: str) -> None:
    key = slow.key()

    async def give_up() -> None:
        async with connected(slow.url, key, mode) as client:
            calling = asyncio.create_task(client.call_tool("generate_video", POND | {"steps": 75}))
            await asyncio.to_thread(eventually, lambda: error_codes(slow, key))
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling

    asyncio.run(give_up())
    assert eventually(lambda: error_codes(slow, key) == ["cancelled"], seconds=5)


def test_null_for_an_optional_parameter_is_its_default(server: Stack) -> None:
    nothing = dict.fromkeys(["seed", "negative_prompt", "webhook_url", SCENARIO])
    assert generate(server, POND | nothing).structured_content["seed"] == 985521
    assert "got null" in refused(server, {"prompt": None})
    assert "`lens` is unknown" in str(generate(server, POND | {"lens": None}).structured_content)


def test_what_is_wrong_is_said_to_the_model(server: Stack) -> None:
    assert refused(server, {"prompt": ""}) == "`prompt` must not be empty."
    assert "`steps` must be a whole number from 10 to 75; got 5" in refused(
        server, POND | {"steps": 5}
    )
    assert refused(server, POND | {SCENARIO: "fail:the lens cap was on"}) == "the lens cap was on"


@pytest.fixture
def app(redis_url: str, tmp_path: Path) -> FastAPI:
    """A gateway within the test. Its clients hang up never."""
    app = create_app(
        ServerSettings(data_dir=tmp_path, redis_url=redis_url), connect_gateway(redis_url)
    )
    stack = app.middleware_stack
    assert stack is not None

    async def with_hang_up(scope: Scope, receive: Receive, send: Send) -> None:
        await stack({**scope, "state": {"hang_up": asyncio.Event()}}, receive, send)

    app.middleware_stack = with_hang_up
    return app


def test_a_bug_is_logged_under_the_request_id_and_its_text_is_not_sent(
    redis: Redis, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def accept(*_: object, **__: object) -> Accepted:
        return Accepted("an-id")

    async def fail(*_: object) -> None:
        raise RuntimeError("cannot open /srv/mochi")

    monkeypatch.setattr(Submission, "accept", accept)
    monkeypatch.setattr(Poller, "wait_for_end", fail)
    headers = {**ACCEPT, "x-api-key": create_key(redis, NewKey(name="test"))}
    asked = httpx2.Request("POST", "http://gateway/mcp", headers=headers, json=CALL)
    with capture_logs() as log:
        (answer,) = call(app, asked)
    assert "Internal error. The server's log has the details." in answer.text
    assert "/srv" not in answer.text
    (line,) = [line for line in log if line["event"] == "http.bug"]
    assert (line["path"], line["request_id"]) == ("/mcp", "an-id")


def test_a_bug_of_the_progress_reports_ends_the_call_which_names_the_request(
    redis: Redis, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_job: Job) -> str:
        raise RuntimeError("cannot open /srv/mochi")

    monkeypatch.setattr(mcp_tool, "_message", fail)
    WorkerStore(redis, lease_seconds=60, retention_seconds=60).beat(live())
    headers = {**ACCEPT, "x-api-key": create_key(redis, NewKey(name="test"))}
    asked = httpx2.Request("POST", "http://gateway/mcp", headers=headers, json=CALL)
    with capture_logs() as log:
        (answer,) = call(app, asked)
    (line,) = [line for line in log if line["event"] == "http.bug"]
    assert f"The request {line['request_id']} goes on." in answer.text
    assert "/srv" not in answer.text


def test_a_body_that_does_not_arrive_is_refused_as_on_the_routes(
    redis: Redis, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def part() -> AsyncIterator[bytes]:
        yield b'{"jsonrpc": '
        await asyncio.sleep(60)

    monkeypatch.setattr(body, "BODY_SECONDS", 0.05)
    headers = {**ACCEPT, "x-api-key": create_key(redis, NewKey(name="test"))}
    (answer,) = call(
        app, httpx2.Request("POST", "http://gateway/mcp", headers=headers, content=part())
    )
    assert "did not arrive within 0.05 seconds" in refusal(answer, 400)


def test_keys_limits_prices_and_retries_are_those_of_the_routes(slow: Stack) -> None:
    assert "may not" in refused(slow, POND, slow.key(scopes=[lookup.Scope.READ]))
    poor = slow.key(credits="3")
    metrics = generate(slow, POND, poor).structured_content["metrics"]
    assert (metrics["cost"], metrics["remaining_credits"]) == (2, 1)
    assert "Insufficient credits" in refused(slow, POND, poor)
    once = slow.key(requests_per_minute=1)
    first = generate(slow, POND, once, **{"Idempotency-Key": "a"})
    again = generate(slow, POND, once, **{"Idempotency-Key": "a"})
    assert first.structured_content["request_id"] == again.structured_content["request_id"]
    assert "a minute" in refused(slow, POND, once)


def test_a_gateway_that_stops_says_that_the_request_runs_on(slow: Stack) -> None:
    key, first = slow.key(), slow.url
    slow.start_gateway(drain_seconds="0")
    gateway = slow.processes[-1]
    try:

        async def call() -> Any:
            async with connected(slow.url, key) as client:
                calling = asyncio.create_task(
                    client.call_tool("generate_video", POND | {"steps": 40})
                )
                await asyncio.to_thread(eventually, lambda: error_codes(slow, key))
                gateway.terminate()
                return await calling

        result = asyncio.run(call())
    finally:
        slow.url = first
    assert result.is_error
    assert "This gateway stops" in result.content[0].text
    assert eventually(lambda: slow.http(key).get("/v1/videos").json()["data"][0]["completed_at"])
    assert error_codes(slow, key) == [None]


def test_any_gateway_takes_a_call_without_a_session(server: Stack) -> None:
    headers = {"x-api-key": server.key(), "accept": "application/json, text/event-stream"}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    answer = httpx2.post(f"{server.url}/mcp", json=call, headers=headers)
    assert answer.status_code == 200
    assert '"generate_video"' in answer.text
    assert "mcp-session-id" not in answer.headers


def test_without_a_key_nothing_is_read(server: Stack) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert refusal(httpx2.post(f"{server.url}/mcp", json=call), 401)
    assert refusal(httpx2.get(f"{server.url}/mcp", headers={"x-api-key": server.key()}), 405)


def test_a_body_over_the_limit_is_refused(server: Stack) -> None:
    headers = {"x-api-key": server.key(), "accept": "application/json, text/event-stream"}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x" * 200_000}}
    refusal(httpx2.post(f"{server.url}/mcp", json=call, headers=headers), 413)


def test_without_its_extra_a_404_says_what_to_install(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)  # as Python marks what it does not find
    app = request.getfixturevalue("app")
    headers = {"x-api-key": create_key(redis, NewKey(name="test"))}
    asked = httpx2.Request("POST", "http://gateway/mcp", headers=headers, json=CALL)
    stranger = httpx2.Request("POST", "http://gateway/mcp", json=CALL)
    missing, refused = call(app, asked, stranger)
    assert "pip install -c constraints.txt '.[mcp]'" in refusal(missing, 404)
    refusal(refused, 401)
