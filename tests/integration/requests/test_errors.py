"""The error table of the contract, row by row, against real processes.

413 is in `test_body_limits.py`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from redis import Redis
from structlog.testing import capture_logs

from models.mock.scenario import SCENARIO
from server.app import create_app
from server.keys.lookup import Scope
from server.keys.record import NewKey
from server.keys.store import create_key
from server.settings import ServerSettings
from tests.support.jobs import answer_with
from tests.support.stack import Stack, eventually
from tests.support.wire import (
    NO_KEY,
    SOON_SECONDS,
    SUBMITS,
    another_gateway,
    call,
    refusal,
    stranger,
)
from worker.broker.connection import connect_gateway
from worker.runtime.mock_outcome import BUG_TEXT
from worker.store.gateway_side import GatewayStore
from worker.store.submits import NewRequest

POND = {"prompt": "a pond", "frames": 1}
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
JSON_HEADER = {"content-type": "application/json"}


# 400


@pytest.mark.parametrize("path", SUBMITS)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["`prompt` is required", "not blank"]),
        ({"prompt": "  "}, ["`prompt` must not be blank", "only white space"]),
        ({"prompt": 7}, ["`prompt` must be", "text", "got 7"]),
        (
            {"steps": "ab"},
            ["`steps` must be", "a whole number from 10 to 75", "a string of 2 char"],
        ),
        ({"steps": 9}, ["`steps` must be", "a whole number from 10 to 75", "got 9"]),
        ({"frames": 1.5}, ["`frames` must be", "a whole number from 1 to 160", "got 1.5"]),
        ({"fps": 31}, ["`fps` must be", "a number from 7 to 30", "got 31"]),
        ({"guidance_scale": []}, ["`guidance_scale` must be", "from 2 to 10", "got a list"]),
        ({"seed": True}, ["`seed` must be", "a whole number from -1", "got true"]),
        ({"fps": 31, "steps": 9}, ["`fps` must be", "got 31.", "`steps` must be", "got 9."]),
    ],
)
def test_a_wrong_parameter_is_named_with_its_rule_and_what_came(
    server: Stack, path: str, body: dict[str, object], words: list[str]
) -> None:
    pond = POND if body and "prompt" not in body else {}
    text = refusal(server.http().post(path, json=pond | body), 400)
    assert text.startswith(words[0])
    assert all(word in text for word in words)


@pytest.mark.parametrize("path", SUBMITS)
def test_each_wrong_parameter_has_its_own_message(server: Stack, path: str) -> None:
    body = server.http().post(path, json=POND | {"fps": 31, "steps": 9}).json()
    assert body["parameters"].keys() == {"fps", "steps"}
    assert body["error"] == " ".join(body["parameters"].values())


@pytest.mark.parametrize("path", SUBMITS)
def test_what_is_not_json_is_told_where_it_stops_to_be(server: Stack, path: str) -> None:
    answer = server.http().post(path, content=b'{"prompt": oops}', headers=JSON_HEADER)
    assert "at line 1, column 12" in refusal(answer, 400)


# 401


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("x-api-key", "")],
        [("authorization", "")],
        [("authorization", "Bearer")],
    ],
)
def test_a_request_without_a_key_is_401(server: Stack, headers: list[tuple[str, str]]) -> None:
    answer = httpx2.get(f"{server.url}/v1/get-user-credits", headers=headers)
    assert refusal(answer, 401) == NO_KEY


@pytest.mark.parametrize("value", ["mochi_key", "Basic bW9jaGk6bW9jaGk=", "Token mochi_key"])
def test_an_authorization_that_is_no_bearer_token_is_told_so(server: Stack, value: str) -> None:
    answer = httpx2.get(f"{server.url}/v1/get-user-credits", headers={"authorization": value})
    assert refusal(answer, 401) == "Authorization must be `Bearer KEY`; or send x-api-key: KEY"


@pytest.mark.parametrize(
    "key", [b"nonsense", b"mochi_", b"mochi_" + b"x" * 43, b"x" * 30_000, b"\xe9\xff", b"a, b"]
)
@pytest.mark.parametrize("header", [(b"x-api-key", b""), (b"authorization", b"Bearer ")])
def test_a_bad_key_is_401_with_another_message(
    server: Stack, header: tuple[bytes, bytes], key: bytes
) -> None:
    name, scheme = header
    with stranger(server) as client:
        answer = client.get("/v1/get-user-credits", headers=[(name, scheme + key)])
    text = refusal(answer, 401)
    assert text.endswith(" `mochi-server up` names the file of the first key.")
    assert key.decode("latin-1") not in text


def test_two_keys_in_one_request_are_refused_even_if_both_are_good(server: Stack) -> None:
    one, other = server.key(), server.key()
    for headers in (
        [("x-api-key", one), ("x-api-key", other)],
        [("x-api-key", one), ("authorization", f"Bearer {other}")],
    ):
        answer = httpx2.get(f"{server.url}/v1/get-user-credits", headers=headers)
        assert refusal(answer, 401) != NO_KEY


def test_a_key_in_the_query_string_is_not_accepted(server: Stack) -> None:
    answer = httpx2.get(f"{server.url}/v1/get-user-credits", params={"x-api-key": server.key()})
    assert refusal(answer, 401) == NO_KEY


# 403, 404, 405, 406


def test_a_key_without_the_scope_is_told_which(server: Stack) -> None:
    reader = server.http(server.key(scopes=frozenset({Scope.READ})))
    maker = server.http(server.key(scopes=frozenset({Scope.GENERATE})))
    for path in SUBMITS:
        assert "`generate`" in refusal(reader.post(path, json=POND), 403)
    for path in (f"/v2/requests/{UNKNOWN_ID}", "/v1/get-user-credits"):
        assert "`read`" in refusal(maker.get(path), 403)
    assert maker.post("/v2/mochi-1", json=POND).status_code == 200


@pytest.mark.parametrize("verb", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/v1", "/v2/", "/v3/mochi-1", "/v2/requests", "/v2/requests/1/2/3",
     "/docs/nowhere", "/docs/%00", "/docs/" + "x" * 5_000, "/docs/%ff"],
)  # fmt: skip
def test_an_unknown_path_is_json_too(server: Stack, verb: str, path: str) -> None:
    answer = server.http().request(verb, path)
    assert refusal(answer, 405 if path.startswith("/docs/") and verb == "POST" else 404)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_unknown_model_is_told_which_one_there_is(server: Stack, version: str) -> None:
    answer = server.http().post(f"/{version}/mochi-2", json=POND)
    assert "`mochi-1`" in refusal(answer, 404)


@pytest.mark.parametrize("request_id", [UNKNOWN_ID, "x", "%C3%A9", "*", "%00", "x" * 10_000])
def test_an_unknown_request_is_named(server: Stack, request_id: str) -> None:
    text = httpx2.URL(f"http://x/{request_id}").path.removeprefix("/")
    for path in ("/v2/requests/{}", "/v2/requests/{}/status", "/v1/requests/{}"):
        answer = server.http().get(path.format(request_id))
        assert refusal(answer, 404) == f"Request {text} not found"


@pytest.mark.parametrize(
    ("verb", "path", "allowed"),
    [
        ("GET", "/v1/mochi-1", {"POST"}),
        ("PUT", "/v2/mochi-1", {"POST"}),
        ("POST", "/v1/get-user-credits", {"GET", "HEAD"}),
        ("POST", f"/v2/requests/{UNKNOWN_ID}", {"GET", "HEAD", "DELETE"}),
        ("DELETE", f"/v1/requests/{UNKNOWN_ID}", {"GET", "HEAD"}),
        ("PATCH", f"/v2/requests/{UNKNOWN_ID}/status", {"GET", "HEAD"}),
        ("POST", f"/v2/videos/{UNKNOWN_ID}.mp4", {"GET", "HEAD"}),
        ("POST", "/docs/swagger-ui.css", {"GET", "HEAD"}),
        ("POST", "/docs", {"GET", "HEAD"}),
        ("POST", "/openapi.json", {"GET", "HEAD"}),
        ("DELETE", "/healthz", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_verb_is_told_the_right_ones(
    server: Stack, verb: str, path: str, allowed: set[str]
) -> None:
    answer = server.http().request(verb, path)
    text = refusal(answer, 405)
    assert set(answer.headers["allow"].split(", ")) == allowed
    assert all(verb in text for verb in allowed)


@pytest.mark.parametrize("path", SUBMITS)
@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, {"content-type": "json"}])
def test_a_wrong_or_missing_content_type_is_406(
    server: Stack, path: str, headers: dict[str, str]
) -> None:
    answer = server.http().post(path, content=b'{"prompt": "a pond"}', headers=headers)
    assert refusal(answer, 406).startswith("Invalid content type")


# 422


def test_a_failed_request_is_422_wherever_it_is_asked_for(server: Stack) -> None:
    client = server.http()
    submitted = client.post(
        "/v2/mochi-1", json=POND | {"steps": 10, SCENARIO: "fail:no film"}
    ).json()
    urls = [submitted[name] for name in ("status_url", "response_url", "poll_url")]
    eventually(lambda: client.get(urls[0]).status_code == 422)
    for body in (client.get(url) for url in urls):
        assert body.status_code == 422
        told = body.json()
        assert told.pop("expires_at")
        assert told == {
            "status": "FAILED",
            "request_id": submitted["request_id"],
            "error": "no film",
            "error_code": "internal",
            "metrics": body.json()["metrics"],
        }
        assert set(body.json()["metrics"]) == {"inference_time", "queue_time", "total_time"}


def test_v1_is_422_when_its_job_fails(server: Stack) -> None:
    answer = server.http().post("/v1/mochi-1", json=POND | {"steps": 10, SCENARIO: "bug"})
    assert answer.status_code == 422
    body = answer.json()
    assert body["status"] == "FAILED"
    assert answer.headers["x-request-id"] == body["request_id"]
    assert BUG_TEXT not in answer.text


# 429


def test_a_full_queue_is_429_and_says_when_to_come_again(tmp_path: Path) -> None:
    with Stack(tmp_path, engine="fake") as stack:
        stack.start_gateway()
        small = another_gateway(stack, most_waiting="1")
        client = stack.http()
        assert client.post("/v2/mochi-1", json=POND).is_success
        answer = client.post(f"{small}/v2/mochi-1", json=POND)
        assert "queue is full" in refusal(answer, 429)
        reset = datetime.fromisoformat(answer.headers["x-rate-limit-reset-at-utc"])
        wait = int(answer.headers["retry-after"])
        assert 0 < wait <= 60
        assert abs((reset - datetime.now(UTC)).total_seconds() - wait) < 5
        assert client.post("/v2/mochi-1", json=POND).is_success  # the other one has room
        refusal(client.post(f"{small}/v1/mochi-1", json=POND), 502)  # no worker is alive


# 500


def test_a_bug_leaks_nothing(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(
        ServerSettings(data_dir=tmp_path, redis_url=redis_url), connect_gateway(redis_url)
    )

    async def broken(_self: object, made: list[NewRequest], *_: object, **__: object) -> str:
        raise RuntimeError(f"{BUG_TEXT}: {made[0].params.prompt}")

    monkeypatch.setattr(GatewayStore, "submit_all", broken)
    key = create_key(redis, NewKey(name="test"))
    headers = {"x-api-key": key}
    requests = [
        httpx2.Request("POST", f"http://gateway{path}", headers=headers, json=POND)
        for path in SUBMITS
    ]
    with capture_logs() as log:
        answers = call(app, *requests)
    assert [line["path"] for line in log if line["event"] == "http.bug"] == SUBMITS
    for answer in answers:
        refusal(answer, 500)
        assert "/srv" not in answer.text
        assert "pond" not in answer.text
        assert "RuntimeError" not in answer.text


def test_an_outcome_of_a_submit_that_is_not_known_is_a_bug_and_no_acceptance(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, submit="return { 'deferred', 'an-id' }")
    app = create_app(
        ServerSettings(data_dir=tmp_path, redis_url=redis_url), connect_gateway(redis_url)
    )
    headers = {"x-api-key": create_key(redis, NewKey(name="test"))}
    asked = httpx2.Request("POST", "http://gateway/v2/mochi-1", headers=headers, json=POND)
    with capture_logs() as log:
        (answer,) = call(app, asked)
    refusal(answer, 500)
    assert [line["event"] for line in log if line["log_level"] == "error"] == ["http.bug"]


# 502


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Stack]:
    """A gateway and its broker, without a worker."""
    with Stack(tmp_path, engine="fake") as stack:
        stack.start_gateway()
        yield stack


def test_without_a_live_worker_v1_is_502_and_v2_waits(alone: Stack) -> None:
    client = alone.http()
    assert "/readyz says why" in refusal(client.post("/v1/mochi-1", json=POND), 502)
    assert client.post("/v2/mochi-1", json=POND).json()["status"] == "QUEUED"
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "worker" in ready.json()["missing"][0]


def test_with_the_broker_down_every_route_is_502_and_soon(alone: Stack) -> None:
    client = alone.http()
    submitted = client.post("/v2/mochi-1", json=POND).json()
    alone.broker.stop()
    _assert_down(client, submitted["status_url"])
    alone.broker.start()
    assert eventually(lambda: client.get(submitted["status_url"]).status_code == 200)


def test_with_the_broker_hanging_every_route_is_502_and_soon(alone: Stack) -> None:
    client = alone.http()
    submitted = client.post("/v2/mochi-1", json=POND).json()
    pid = int(alone.redis.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        _assert_down(client, submitted["status_url"])
    finally:
        os.kill(pid, signal.SIGCONT)
    assert eventually(lambda: client.get(submitted["status_url"]).status_code == 200)


def _assert_down(client: httpx2.Client, status_url: str) -> None:
    asked = [("GET", status_url), ("POST", "/v2/mochi-1"), ("POST", "/v1/mochi-1")]
    for verb, url in asked:
        began = time.monotonic()
        answer = client.request(verb, url, json=POND if verb == "POST" else None)
        assert "broker" in refusal(answer, 502)
        assert time.monotonic() - began < SOON_SECONDS
    began = time.monotonic()
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "broker" in ready.json()["missing"][0]
    assert time.monotonic() - began < SOON_SECONDS
    assert client.get("/healthz").is_success
    began = time.monotonic()
    assert client.get("/version").json()["engines"] == []
    assert time.monotonic() - began < SOON_SECONDS


# 504


def test_v1_past_its_limit_is_504_and_its_job_runs_on(server: Stack) -> None:
    hasty = another_gateway(server, v1_seconds="0.05")
    client = server.http()
    answer = client.post(f"{hasty}/v1/mochi-1", json=POND | {"steps": 20})
    refusal(answer, 504)
    request_id = answer.json()["request_id"]
    status_url = f"/v2/requests/{request_id}/status"
    assert eventually(lambda: client.get(status_url).json()["status"] == "COMPLETED")
    assert client.get(f"/v2/requests/{request_id}").json()["video"]["file_size"] > 0


def test_a_base_url_without_the_version_of_the_api_is_told_so(server: Stack) -> None:
    says = refusal(server.http().post("/mochi-1", json=POND), 404)
    assert says.endswith(f"like {server.url}/v1")
