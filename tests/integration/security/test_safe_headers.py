"""Headers that keep browsers and caches in bounds: on every answer, whatever it is."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import httpx2
import pytest

from tests.support.stack import Stack, eventually
from tests.support.wire import another_gateway, connect, read_answer, refusal

POND = {"prompt": "a pond at night", "frames": 1, "steps": 10}
CLOSED = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


@pytest.fixture(scope="module")
def video(server: Stack) -> str:
    """A link to one."""
    client = server.http()
    url = client.post("/v2/mochi-1", json=POND).json()["response_url"]
    link: Any = eventually(lambda: client.get(url).json().get("output"))
    return str(link)


def assert_safe(answer: httpx2.Response, policy: str = CLOSED) -> None:
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-security-policy"] == policy
    assert "strict-transport-security" not in answer.headers
    assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("GET", "/v1/get-user-credits", 200),
        ("POST", "/v2/mochi-1", 200),
        ("POST", "/v1/mochi-1", 200),
        ("GET", "/v2/requests/1", 404),
        ("GET", "/v2/videos/1.mp4", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/docs/nowhere", 404),
        ("PATCH", "/v2/mochi-1", 405),
        ("PUT", "/docs", 405),
        ("PUT", "/", 405),
        ("GET", "/page/nowhere", 404),
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/version", 200),
        ("GET", "/openapi.json", 200),
    ],
)
def test_a_response_is_not_cached_and_its_policy_allows_nothing(
    server: Stack, verb: str, path: str, status: int
) -> None:
    answer = server.http().request(verb, path, json=POND if verb == "POST" else None)
    assert answer.status_code == status
    assert_safe(answer)
    assert answer.headers["cache-control"] == "no-store"


def test_so_is_a_refusal_before_it_is_known_what_was_asked_for(server: Stack) -> None:
    answers = [httpx2.get(f"{server.url}/v1/get-user-credits")]
    with connect(server.url) as connection:
        connection.sendall(b"NONSENSE\r\n\r\n")
        answers.append(read_answer(connection))
    assert [answer.status_code for answer in answers] == [401, 400]
    for answer in answers:
        assert_safe(answer)
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("asked", "status"), [({}, 200), ({"range": "bytes=0-9"}, 206), ({"range": "bytes=0,1"}, 200)]
)
def test_a_video_is_kept_by_its_viewer_and_no_longer_than_by_us(
    video: str, asked: dict[str, str], status: int
) -> None:
    answer = httpx2.get(video, headers=asked)
    assert answer.status_code == status
    # A browser that is led to it shows a page of its own, which takes the video from there.
    assert_safe(answer, f"{CLOSED}; media-src 'self'; style-src 'unsafe-inline'")
    kind, _, seconds = answer.headers["cache-control"].partition(", max-age=")
    assert kind == "private"
    assert 0 < int(seconds) <= 3600


def test_a_refused_range_is_not_cached(video: str) -> None:
    answer = httpx2.get(video, headers={"range": "bytes=99999999-"})
    refusal(answer, 416)
    assert_safe(answer)
    assert answer.headers["cache-control"] == "no-store"


def test_the_docs_page_may_run_its_own_scripts_and_no_other(server: Stack) -> None:
    answer = httpx2.get(f"{server.url}/docs")
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert_safe(
        answer,
        f"{CLOSED}; connect-src 'self'; img-src 'self' data:; style-src 'self'; "
        f"script-src 'self' 'sha256-{digest}'",
    )
    assert not re.search(r"\sstyle=|\son\w+=|javascript:", answer.text)
    assert "cache-control" not in answer.headers
    assert_safe(httpx2.get(f"{server.url}/docs/swagger-ui-bundle.js"))


def test_the_page_may_run_its_own_files_only_and_turn_no_text_into_markup(server: Stack) -> None:
    answer = httpx2.get(f"{server.url}/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert_safe(
        answer,
        f"{CLOSED}; connect-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "require-trusted-types-for 'script'; trusted-types 'none'; media-src 'self'",
    )
    assert not re.search(r"\sstyle=|\son\w+=|javascript:|<style|//", answer.text)
    for file, kinds in {
        "page.js": {"text/javascript", "application/javascript"},  # by the version of Python
        "styles/page.css": {"text/css"},
        "styles/form.css": {"text/css"},
        "styles/request.css": {"text/css"},
        "icon.svg": {"image/svg+xml"},
    }.items():
        asset = httpx2.get(f"{server.url}/page/{file}")
        assert asset.headers["content-type"].partition(";")[0] in kinds
        assert_safe(asset)


@pytest.mark.parametrize("path", ["/", "/page/page.js"])
def test_the_page_is_asked_for_anew_at_each_visit_and_sent_when_it_is_another(
    server: Stack, path: str
) -> None:
    answer = httpx2.get(f"{server.url}{path}")
    assert answer.headers.get_list("cache-control") == ["no-cache"]
    again = httpx2.get(server.url + path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert_safe(again, answer.headers["content-security-policy"])


def test_the_page_may_show_videos_from_where_links_lead(server: Stack) -> None:
    elsewhere = another_gateway(server, public_url="https://videos.example:8443")
    policy = httpx2.get(elsewhere).headers["content-security-policy"]
    assert policy.endswith("; media-src 'self' https://videos.example:8443")


# Without the pages


@pytest.fixture(scope="module")
def bare(server: Stack) -> str:
    """The URL of a gateway without documents."""
    return another_gateway(server, docs="false")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/page/page.js", "/docs", "/docs/", "/docs/swagger-ui-bundle.js", "/docs/nowhere"),
        "/openapi.json",
    ],
)
@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_docs_can_be_left_out(server: Stack, bare: str, verb: str, path: str) -> None:
    for answer in (httpx2.request(verb, bare + path), server.http().request(verb, bare + path)):
        assert refusal(answer, 404) == (
            "There is no such path or model here. The model is `mochi-1`."
        )


def test_without_docs_all_else_is_there(server: Stack, bare: str) -> None:
    assert server.http().get(f"{bare}/version").is_success  # with a key: it names the store
    refusal(httpx2.get(f"{bare}/v1/get-user-credits"), 401)
    assert server.http().get(f"{bare}/v1/get-user-credits").is_success
    allowed = server.http().put(f"{bare}/v2/mochi-1").headers["allow"]
    assert allowed == "POST"
