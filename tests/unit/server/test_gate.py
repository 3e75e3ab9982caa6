"""The gate, in front of the whole application: who gets in, and what a caller's Host may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from redis import Redis

from server.app import create_app
from server.gate import PUBLIC, PUBLIC_FOLDERS
from server.key_record import NewKey
from server.keys import create_key
from server.settings import ServerSettings
from tests.wire import call, refusal
from worker.connection import connect_gateway

SIGNED_VIDEO = "/v2/videos/{request_id}.mp4"


@pytest.fixture
def app(redis_url: str, tmp_path: Path) -> FastAPI:
    settings = ServerSettings(data_dir=tmp_path, redis_url=redis_url)
    return create_app(settings, connect_gateway(redis_url))


@pytest.fixture
def secret(redis: Redis) -> str:
    return create_key(redis, NewKey(name="test"))


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Verb and path of everything that the application answers to."""
    for route in iter_route_contexts(app.routes):
        for verb in sorted(route.methods or {"GET"}):
            yield verb, str(route.path)


def ask(verb: str, path: str, **headers: str) -> httpx.Request:
    return httpx.Request(verb, f"http://gateway{path}", headers=headers)


def test_nothing_but_the_public_list_is_reached_without_a_key(app: FastAPI) -> None:
    found = set(routes(app))
    assert {("POST", "/v1/mochi-1"), ("POST", "/v2/mochi-1"), ("GET", "/docs")} <= found
    closed = [
        (verb, path) for verb, path in sorted(found) if path not in PUBLIC and path != SIGNED_VIDEO
    ]
    answers = call(app, *(ask(verb, path) for verb, path in closed if path != "/docs/"))
    assert len(answers) >= 6
    for answer in answers:
        assert refusal(answer, 401) == "Missing Authorization or x-api-key in header"


def test_the_public_list_names_only_what_there_is(app: FastAPI) -> None:
    paths = {path for _, path in routes(app)}
    assert paths >= PUBLIC
    assert all(any(f"{path}/".startswith(folder) for path in paths) for folder in PUBLIC_FOLDERS)


def test_the_public_list_is_public(app: FastAPI) -> None:
    answers = call(app, *(ask("GET", path) for path in sorted(PUBLIC)))
    assert {answer.status_code for answer in answers} <= {200, 307, 503}


def test_no_spelling_of_a_path_gets_round_the_key(app: FastAPI) -> None:
    spellings = [
        "//v1/get-user-credits",
        "/docs/../v1/get-user-credits",
        "/docs/%2e%2e/v1/get-user-credits",
        "/v2/videos/../requests/1",
        "/v2/videos/..%2frequests%2f1",
        "/healthz/../v1/get-user-credits",
        "/v1/get-user-credits;/docs/",
    ]
    for answer in call(app, *(ask("GET", path) for path in spellings)):
        assert answer.status_code in {401, 404}, answer.url


@pytest.mark.parametrize("host", ["here", "HERE.example:8000", "127.0.0.1", "[::1]:8000", "a_b-c"])
def test_a_host_is_taken_over_into_links(app: FastAPI, secret: str, host: str) -> None:
    request = httpx.Request(
        "POST",
        "http://gateway/v2/mochi-1",
        headers={"host": host, "x-api-key": secret},
        json={"prompt": "a pond"},
    )
    (answer,) = call(app, request)
    assert answer.json()["status_url"].startswith(f"http://{host}/v2/requests/")


@pytest.mark.parametrize(
    "host",
    ["", " ", "a b", "a/b", "a@b", "a:b", "a:", "a:123456", "[::1", "[x]", "a\tb", "é", "a?b",
     "<a>", "a\\b", "a#b", "a,b"],
)  # fmt: skip
def test_what_is_no_host_is_refused(app: FastAPI, secret: str, host: str) -> None:
    request = httpx.Request(
        "GET",
        "http://gateway/v1/get-user-credits",
        headers=[(b"host", host.encode("latin-1")), (b"x-api-key", secret.encode())],
    )
    (answer,) = call(app, request)
    assert "Host" in refusal(answer, 400)


def test_two_hosts_are_refused(app: FastAPI, secret: str) -> None:
    request = httpx.Request(
        "GET",
        "http://gateway/v1/get-user-credits",
        headers=[("host", "here"), ("host", "there"), ("x-api-key", secret)],
    )
    (answer,) = call(app, request)
    assert "Host" in refusal(answer, 400)
