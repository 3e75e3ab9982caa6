"""Pages of other origins: which may call, and what they may read."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from server.app import create_app
from server.settings import LOCAL_ORIGINS, ServerSettings
from tests.support.wire import call, refusal
from worker.broker.connection import connect_gateway

PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type,x-api-key,idempotency-key",
}
ORIGIN = "https://a.example"
SUBMIT = "http://gateway/v2/mochi-1"


def ask(
    redis_url: str, folder: Path, request: httpx2.Request, origins: str, *, mock: bool = False
) -> httpx2.Response:
    settings = ServerSettings(data_dir=folder, redis_url=redis_url, cors_origins=origins, mock=mock)
    (response,) = call(create_app(settings, connect_gateway(redis_url)), request)
    return response


def from_page(origin: str, verb: str = "POST", **headers: str) -> httpx2.Request:
    return httpx2.Request(verb, SUBMIT, headers={"origin": origin, **headers})


@pytest.mark.parametrize(
    ("origins", "origin"),
    [
        ("https://app.example", "https://app.example"),
        ("https://a.example, https://app.example:444", "https://app.example:444"),
        ("http://localhost:*", "http://localhost:5173"),
        ("http://localhost:*", "http://localhost"),
        ("http://[::1]:*", "http://[::1]:3000"),
        ("*", "https://any.example"),
    ],
)
def test_a_preflight_of_an_allowed_page_is_answered_without_a_key(
    redis_url: str, tmp_path: Path, origins: str, origin: str
) -> None:
    answer = ask(redis_url, tmp_path, from_page(origin, "OPTIONS", **PREFLIGHT), origins)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] in {origin, "*"}
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-api-key" in answer.headers["access-control-allow-headers"]


@pytest.mark.parametrize(
    ("origins", "origin"),
    [
        ("https://app.example", "http://app.example"),
        ("https://app.example", "https://app.example.evil"),
        ("https://app.example", "https://appxexample"),
        ("https://app.example", "null"),
        ("http://localhost:*", "http://localhost:1.evil"),
        ("http://localhost:*", "http://localhost.evil:1"),
    ],
)
def test_a_preflight_of_any_other_page_is_refused_with_the_remedy(
    redis_url: str, tmp_path: Path, origins: str, origin: str
) -> None:
    answer = ask(redis_url, tmp_path, from_page(origin, "OPTIONS", **PREFLIGHT), origins)
    assert "MOCHI_CORS_ORIGINS" in refusal(answer, 400)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(("origin", "status"), [("https://a.example", 200), ("null", 400)])
def test_a_preflight_is_an_answer_like_any_other(
    redis_url: str, tmp_path: Path, origin: str, status: int
) -> None:
    settings = ServerSettings(data_dir=tmp_path, redis_url=redis_url, cors_origins=ORIGIN)
    app = create_app(settings, connect_gateway(redis_url))
    with capture_logs() as logs:
        (answer,) = call(app, from_page(origin, "OPTIONS", **PREFLIGHT))
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert [
        (line["event"], line["origin"], line["method"]) for line in logs if "origin" in line
    ] == [("http.refused", origin, "OPTIONS")] * (status == 400)
    counted = {
        (sample.labels["verb"], sample.labels["status"])
        for metric in app.state.services.traffic.collect()
        for sample in metric.samples
        if sample.name == "mochi_http_request_seconds_count"
    }
    assert counted == {("OPTIONS", str(status))}


def test_a_verb_that_no_route_takes_is_refused_as_such(redis_url: str, tmp_path: Path) -> None:
    request = from_page("https://app.example", "OPTIONS", **PREFLIGHT)
    request.headers["access-control-request-method"] = "PATCH"
    answer = ask(redis_url, tmp_path, request, "https://app.example")
    assert "takes no PATCH" in refusal(answer, 400)


def test_a_refusal_can_be_read_by_the_page_and_so_can_all_headers(
    redis_url: str, tmp_path: Path
) -> None:
    answer = ask(redis_url, tmp_path, from_page("https://app.example"), "https://app.example")
    assert refusal(answer, 401)
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert answer.headers["access-control-expose-headers"] == "*"
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1:8080"])
def test_with_mock_weights_pages_of_this_machine_may_call(
    redis_url: str, tmp_path: Path, origin: str
) -> None:
    assert ServerSettings(engine="fake").origins == LOCAL_ORIGINS
    assert ServerSettings(mock_weights=True).origins == LOCAL_ORIGINS
    allowed = ask(redis_url, tmp_path, from_page(origin), "", mock=True)
    assert allowed.headers["access-control-allow-origin"] == origin
    away = ask(redis_url, tmp_path, from_page("https://app.example"), "", mock=True)
    assert "access-control-allow-origin" not in away.headers


def test_otherwise_no_page_of_another_origin_may(redis_url: str, tmp_path: Path) -> None:
    answer = ask(redis_url, tmp_path, from_page("http://localhost:5173"), "")
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origins",
    [
        "app.example",
        "https://app.example/",
        "ftp://a.example",
        "https://*.a.example",
        "https://A.example",
        "https://a.example:443",
        "http://a.example:80",
    ],
)
def test_what_is_no_origin_is_refused_at_the_start(origins: str) -> None:
    with pytest.raises(ValidationError, match="is no origin"):
        ServerSettings(cors_origins=origins)
