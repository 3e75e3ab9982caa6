"""The middleware in front of the whole application: authentication, and the Host header."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from redis import Redis
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from structlog.testing import capture_logs

from server import paths as gate
from server.app import create_app
from server.keys.lookup import digest
from server.keys.record import NewKey
from server.keys.store import create_key
from server.keys.throttle import MOST_BAD_KEYS
from server.paths import PUBLIC, PUBLIC_FOLDERS
from server.settings import ServerSettings
from server.transport.middleware import MOST_WARNED_PEERS
from tests.support.wire import call, refusal
from worker.broker.connection import connect_gateway
from worker.errors import StorageError
from worker.store import keyspace

SIGNED_FILES = {
    "/v2/videos/{request_id}.mp4",
    "/v2/videos/{request_id}.webm",
    "/v2/videos/{request_id}.gif",
    "/v2/videos/{request_id}-{still}.jpg",
}
VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "ODD")
OPEN = {
    "/",
    "/docs",
    "/docs/anything",
    "/healthz",
    "/openapi.json",
    "/page/{name:path}",
    "/readyz",
    "/version",
    *SIGNED_FILES,
}
"""Written out, and not taken from the gate: what is added there has to be added here as well."""


@pytest.fixture
def app(redis_url: str, tmp_path: Path) -> FastAPI:
    settings = ServerSettings(data_dir=tmp_path, redis_url=redis_url)
    return create_app(settings, connect_gateway(redis_url))


@pytest.fixture
def secret(redis: Redis) -> str:
    return create_key(redis, NewKey(name="test"))


def ask(verb: str, path: str, **headers: str) -> httpx2.Request:
    return httpx2.Request(verb, f"http://gateway{path}", headers=headers)


def walk(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[str]:
    """The path of everything that an application answers to, within what is mounted too."""
    for context in iter_route_contexts([*routes]):
        path = f"{prefix}{context.path}"
        yield path
        if isinstance(context.original_route, Mount):
            yield f"{path}/anything"
            yield from walk(context.original_route.routes, path)


def open_without_a_key(app: FastAPI) -> set[str]:
    """The paths that some verb reaches without a key."""
    asked = [(verb, path) for path in sorted({*walk(app.routes)}) for verb in VERBS]
    answers = call(app, *(ask(verb, path) for verb, path in asked))
    return {
        path
        for (_, path), answer in zip(asked, answers, strict=True)
        if answer.status_code != HTTPStatus.UNAUTHORIZED
    }


def test_nothing_but_this_list_is_reached_without_a_key(app: FastAPI) -> None:
    assert open_without_a_key(app) == OPEN
    assert {"/v1/mochi-1", "/v2/mochi-1", "/v2/requests/{request_id}"} <= {*walk(app.routes)} - OPEN


def test_a_signature_stands_for_a_key_at_events_alone(app: FastAPI) -> None:
    odd = ["/v1/videos/events", "/v2/requests/events", "/v2/requests/a/b/events", "/events"]
    paths = sorted({*walk(app.routes), *odd} - OPEN)
    asked = [(verb, path) for path in paths for verb in VERBS]
    answers = call(app, *(ask(verb, f"{path}?signature=guess") for verb, path in asked))
    opened = {one for one, answer in zip(asked, answers, strict=True) if answer.status_code != 401}
    assert opened == {(verb, "/v2/requests/{request_id}/events") for verb in ("GET", "HEAD")}


def test_a_key_counts_more_than_a_signature(app: FastAPI, secret: str) -> None:
    own, bad = (
        ask("GET", "/v2/requests/any/events?signature=old", **{"x-api-key": key})
        for key in (secret, "mochi_guess")
    )
    assert [answer.status_code for answer in call(app, own, bad)] == [404, 401]


@pytest.mark.parametrize("query", ["signature=", "signature=guess", "no_signature=guess"])
def test_a_wrong_signature_of_events_is_404(app: FastAPI, query: str) -> None:
    (answer,) = call(app, ask("GET", f"/v2/requests/any/events?{query}"))
    assert refusal(answer, 404) == "Request any not found"


def test_without_docs_the_list_is_shorter(redis_url: str, tmp_path: Path) -> None:
    settings = ServerSettings(data_dir=tmp_path, redis_url=redis_url, docs=False)
    app = create_app(settings, connect_gateway(redis_url))
    assert open_without_a_key(app) == {"/healthz", "/readyz", *SIGNED_FILES}


def test_a_new_route_needs_a_key_wherever_it_is_mounted(app: FastAPI) -> None:
    inner = FastAPI(openapi_url=None)
    inner.add_api_route("/deep", lambda: "in")
    app.mount("/mounted", inner)
    app.add_api_route("/v2/new", lambda: "in", methods=["PATCH"])
    assert {"/mounted/anything", "/mounted/deep", "/v2/new"} <= {*walk(app.routes)}
    assert open_without_a_key(app) == OPEN


def test_a_new_route_that_needs_none_is_found_out(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = FastAPI(openapi_url=None)
    inner.add_api_route("/deep", lambda: "in")
    app.mount("/mounted", inner)
    app.add_api_route("/v2/new", lambda: "in", methods=["PATCH"])
    monkeypatch.setattr(gate, "PUBLIC", PUBLIC | {"/v2/new"})
    monkeypatch.setattr(gate, "PUBLIC_FOLDERS", (*PUBLIC_FOLDERS, "/mounted/d"))
    assert open_without_a_key(app) - OPEN == {"/v2/new", "/mounted/deep"}


def test_a_guesser_is_kept_from_the_broker_and_a_revoked_key_from_everything(
    app: FastAPI, redis: Redis, secret: str
) -> None:
    async def poll(client: httpx2.AsyncClient, key: str) -> int:
        answer = await client.get("/v1/get-user-credits", headers={"x-api-key": key})
        return answer.status_code

    async def attack() -> None:
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            assert await poll(client, secret) == 200
            guesses = [await poll(client, f"bad-{number}") for number in range(MOST_BAD_KEYS + 2)]
            assert guesses == [401] * MOST_BAD_KEYS + [429] * 2
            assert await poll(client, secret) == 200
            redis.flushall()
            status = 200
            while status == 200:
                status = await poll(client, secret)
            assert status == 401
            assert await poll(client, secret) == 429

    asyncio.run(attack())


def test_the_public_list_names_only_what_there_is(app: FastAPI) -> None:
    paths = {*walk(app.routes)}
    assert paths >= PUBLIC
    assert all(any(f"{path}/".startswith(folder) for path in paths) for folder in PUBLIC_FOLDERS)


def test_the_public_list_is_public(app: FastAPI) -> None:
    answers = call(app, *(ask("GET", path) for path in sorted(PUBLIC)))
    assert {answer.status_code for answer in answers} <= {200, 503}


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


@pytest.mark.parametrize(
    "host",
    ["here", "HERE.example:8000", "127.0.0.1", "[::1]:8000", "a_b-c", "api.segmind.com:8000",
     "notsegmind.com"],
)  # fmt: skip
def test_a_host_is_taken_over_into_links(app: FastAPI, secret: str, host: str) -> None:
    assert status_url(app, secret, host).startswith(f"http://{host}/v2/requests/")


@pytest.mark.parametrize("host", ["api.segmind.com", "api.spotprod.segmind.com"])
def test_links_on_a_name_of_the_hosted_api_are_https(app: FastAPI, secret: str, host: str) -> None:
    assert status_url(app, secret, host).startswith(f"https://{host}/v2/requests/")


def status_url(app: FastAPI, secret: str, host: str) -> str:
    """The link in the answer to a submit."""
    request = httpx2.Request(
        "POST",
        "http://gateway/v2/mochi-1",
        headers={"host": host, "x-api-key": secret},
        json={"prompt": "a pond"},
    )
    (answer,) = call(app, request)
    return str(answer.json()["status_url"])


@pytest.mark.parametrize(
    "host",
    ["", " ", "a b", "a/b", "a@b", "a:b", "a:", "a:123456", "[::1", "[x]", "a\tb", "é", "a?b",
     "<a>", "a\\b", "a#b", "a,b"],
)  # fmt: skip
def test_what_is_no_host_is_refused(app: FastAPI, secret: str, host: str) -> None:
    request = httpx2.Request(
        "GET",
        "http://gateway/v1/get-user-credits",
        headers=[(b"host", host.encode("latin-1")), (b"x-api-key", secret.encode())],
    )
    (answer,) = call(app, request)
    assert "Host" in refusal(answer, 400)


def test_two_hosts_are_refused(app: FastAPI, secret: str) -> None:
    request = httpx2.Request(
        "GET",
        "http://gateway/v1/get-user-credits",
        headers=[("host", "here"), ("host", "there"), ("x-api-key", secret)],
    )
    (answer,) = call(app, request)
    assert "Host" in refusal(answer, 400)


def warned_peers(app: FastAPI, *peers: str, **headers: str) -> list[str]:
    """Of the log's warnings, after a request with these headers from each peer."""
    request = httpx2.Request("GET", "http://gateway/version", headers=headers)
    with capture_logs() as logs:
        for peer in peers:
            call(app, request, peer=peer)
    return [log["peer"] for log in logs if log["event"] == "proxy.not_trusted"]


@pytest.mark.parametrize(
    "header", [("x-forwarded-proto", "https"), ("x-forwarded-host", "videos.example")]
)
def test_each_proxy_that_is_not_trusted_is_warned_of_once(
    app: FastAPI, header: tuple[str, str]
) -> None:
    assert warned_peers(app, "a", **{"x-forwarded-proto": "http", "host": "gateway"}) == []
    assert warned_peers(app, "a", "b", "a", **dict([header])) == ["a", "b"]
    many = map(str, range(2 * MOST_WARNED_PEERS))
    assert len(warned_peers(app, *many, **dict([header]))) == MOST_WARNED_PEERS - 2


def test_a_trusted_proxy_may_send_a_host_that_is_not_used(redis_url: str, tmp_path: Path) -> None:
    settings = ServerSettings(data_dir=tmp_path, redis_url=redis_url, trusted_proxies="10.0.0.7")
    app = create_app(settings, connect_gateway(redis_url))
    assert warned_peers(app, "a", **{"x-forwarded-host": "videos.example"}) == []
    # uvicorn has taken a trusted proxy's scheme over.
    assert warned_peers(app, "a", **{"x-forwarded-proto": "https"}) == ["a"]


def test_no_secret_is_kept(app: FastAPI, secret: str) -> None:
    call(app, *(ask("GET", "/v1/credits", **{"x-api-key": key}) for key in (secret, "mochi_wrong")))
    throttle = repr(vars(app.middleware_stack._throttle))  # type: ignore[union-attr]
    assert digest(secret) in throttle
    assert digest("mochi_wrong") in throttle
    assert secret not in throttle
    assert "mochi_wrong" not in throttle


def test_the_log_says_why_the_broker_refuses(app: FastAPI, redis: Redis, secret: str) -> None:
    (record,) = redis.keys(f"{keyspace.API_KEY}*")
    redis.set(record, "no hash")
    with capture_logs() as logs:
        (answer,) = call(app, ask("GET", "/v1/get-user-credits", **{"x-api-key": secret}))
    assert "refuses this call" in refusal(answer, 502)
    (line,) = (log for log in logs if log["event"] == "http.refused")
    assert line["reason"].startswith("WRONGTYPE")


def test_the_log_says_why_a_call_is_400_without_the_clients_text(app: FastAPI, secret: str) -> None:
    request = httpx2.Request(
        "POST",
        "http://test/v2/mochi-1",
        headers={"x-api-key": secret},
        json={"prompt": "nettles", "steps": "nettles", "frames": 0},
    )
    with capture_logs() as logs:
        (answer,) = call(app, request)
    (line,) = (log for log in logs if log["event"] == "http.refused")
    assert line["reason"] == refusal(answer, 400)
    assert "`steps` must be" in line["reason"]
    assert "nettles" not in str(line)
    assert "request_id" not in line


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_gateway_without_files_to_open_names_the_remedy_in_its_log(
    app: FastAPI, secret: str, number: int
) -> None:
    async def fail(_request: Request) -> Response:
        raise OSError(number, "Too many open files")

    async def fail_at_the_video(request: Request) -> Response:
        try:
            return await fail(request)
        except OSError as error:
            raise StorageError("The video cannot be read.") from error

    app.router.add_route("/v2/one", fail)
    app.router.add_route("/v2/two", fail_at_the_video)
    with capture_logs() as logs:
        asked = (ask("GET", path, **{"x-api-key": secret}) for path in ("/v2/one", "/v2/two"))
        answers = call(app, *asked)
    for answer in answers:
        assert "can open no more files" in refusal(answer, 502)
    lines = [log["reason"] for log in logs if log["event"] == "http.refused"]
    assert ["raise their limit" in line for line in lines] == [True, True]


@pytest.mark.parametrize("rest", ["an-id.mp4", "../../key.mp4", "a/b.mp4", "an-id.mp4/"])
def test_a_refused_download_is_logged_without_its_signature(app: FastAPI, rest: str) -> None:
    signature = "s" * 43
    with capture_logs() as logs:
        call(app, ask("POST", f"/v2/videos/{signature}/{rest}"))
    (line,) = (log for log in logs if log["event"] == "http.refused")
    assert signature not in str(line)
