"""Links in answers and what they lead to: signed videos, ranges, hosts, ignored parameters."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import pytest

from tests.support.stack import Stack, eventually
from tests.support.wire import another_gateway, connect, read_answer, refusal

POND = {"prompt": "a pond", "frames": 3, "steps": 10}
URL_SAFE = string.ascii_letters + string.digits + "-_"


@pytest.fixture(scope="module")
def made(server: Stack) -> dict[str, Any]:
    """The result of a request."""
    return finished(server, server.http())


@pytest.fixture(scope="module")
def content(made: dict[str, Any]) -> bytes:
    """Its whole video."""
    return httpx2.get(made["output"]).content


def finished(
    server: Stack, client: httpx2.Client, base: str = "", **headers: str
) -> dict[str, Any]:
    submitted = client.post(f"{base}/v2/mochi-1", json=POND, headers=headers).json()
    path = urlsplit(submitted["response_url"]).path

    def result() -> dict[str, Any] | None:
        body: dict[str, Any] = client.get(f"{base}{path}", headers=headers).json()
        return body if body["status"] == "COMPLETED" else None

    answer = eventually(result)
    assert answer
    return answer


def urls_in(body: dict[str, Any]) -> list[str]:
    text = json.dumps(body)
    return [part for part in text.split('"') if "://" in part]


# Signatures


def test_a_link_needs_no_key_and_says_what_it_is(made: dict[str, Any], content: bytes) -> None:
    answer = httpx2.get(made["output"])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["accept-ranges"] == "bytes"
    assert int(answer.headers["content-length"]) == made["video"]["file_size"] == len(content)
    assert content[4:8] == b"ftyp"


def test_an_altered_signature_opens_nothing(made: dict[str, Any]) -> None:
    folder, signature, name = made["output"].rsplit("/", 2)
    flipped = "B" if signature[9] != "B" else "C"
    altered = [
        signature[:9] + flipped + signature[10:],
        signature[:-1],
        signature + "A",
        *(signature[:-1] + letter for letter in URL_SAFE if letter != signature[-1]),
        signature[:9] + "!" + signature[9:],
        signature.swapcase(),
        "",
        "*",
        "%00",
        "é",
        "x" * 10_000,
    ]
    for text in altered:
        for link in (f"{folder}/{text}/{name}", f"{folder}/{name}?signature={text}"):
            assert refusal(httpx2.get(link), 404)


def test_a_link_as_older_gateways_made_it_works_until_the_request_expires(
    made: dict[str, Any], content: bytes
) -> None:
    folder, signature, name = made["output"].rsplit("/", 2)
    assert httpx2.get(f"{folder}/{name}?signature={signature}").content == content


def test_a_download_is_named_after_the_end_of_its_link(made: dict[str, Any]) -> None:
    assert made["output"].split("/").pop() == f"{made['request_id']}.mp4"


def test_a_missing_signature_opens_nothing_not_even_with_the_key(
    server: Stack, made: dict[str, Any]
) -> None:
    path = f"/v2/videos/{made['request_id']}.mp4"
    assert refusal(server.http().get(path), 404)
    assert refusal(httpx2.get(f"{server.url}{path}"), 404)


def test_the_signature_of_another_request_opens_nothing(
    server: Stack, made: dict[str, Any]
) -> None:
    other = finished(server, server.http())
    _, signature, _ = other["output"].rsplit("/", 2)
    folder, _, name = made["output"].rsplit("/", 2)
    assert refusal(httpx2.get(f"{folder}/{signature}/{name}"), 404)


@pytest.mark.parametrize(
    "name", ["..%2f..%2fkey", "%2e%2e%2fkey", "%2fetc%2fpasswd", "..", "%00", "x" * 5_000, "%ff"]
)
def test_no_name_leads_out_of_the_folder(server: Stack, made: dict[str, Any], name: str) -> None:
    folder, signature, _ = made["output"].rsplit("/", 2)
    assert refusal(httpx2.get(f"{folder}/{signature}/{name}.mp4"), 404)
    assert refusal(httpx2.get(f"{folder}/{name}.mp4?signature={signature}"), 404)


# Ranges


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-", 0, -1),
        ("bytes=0-0", 0, 0),
        ("bytes=0-99", 0, 99),
        ("bytes=100-199", 100, 199),
        ("bytes=500-", 500, -1),
        ("bytes=-100", -100, -1),
        ("bytes=-99999999", 0, -1),
        ("bytes=100-99999999", 100, -1),
    ],
)
def test_a_range_is_served(
    made: dict[str, Any], content: bytes, asked: str, first: int, last: int
) -> None:
    answer = httpx2.get(made["output"], headers={"range": asked})
    start, stop = first % len(content), last % len(content) + 1
    assert answer.status_code == 206
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(content)}"
    assert int(answer.headers["content-length"]) == stop - start
    assert answer.content == content[start:stop]


@pytest.mark.parametrize("asked", ["bytes={}-", "bytes={}-99999999", "bytes=999999999999999999-"])
def test_a_range_beyond_the_end_is_416_with_the_size(
    made: dict[str, Any], content: bytes, asked: str
) -> None:
    answer = httpx2.get(made["output"], headers={"range": asked.format(len(content))})
    assert f"{len(content):,} bytes" in refusal(answer, 416)
    assert answer.headers["content-range"] == f"bytes */{len(content)}"


@pytest.mark.parametrize(
    "asked",
    ["", "bytes", "bytes=", "bytes=-", "bytes=--1", "bytes=-0", "bytes=9-5", "bytes=a-b", "0-5",
     "bytes=1.5-2", "items=0-5", "bytes=0-5,7-9", "bytes=5", "bytes=" + "9" * 40 + "-",
     "bytes=" + ",".join(["0-"] * 2_000), "\xb2-\xb3", "bytes=\xb2-"],
)  # fmt: skip
def test_what_is_no_range_gets_the_whole(made: dict[str, Any], content: bytes, asked: str) -> None:
    answer = httpx2.get(made["output"], headers=[(b"range", asked.encode("latin-1"))])
    assert answer.status_code == 200
    assert answer.content == content


@pytest.mark.parametrize("headers", [{}, {"range": "bytes=0-9"}, {"range": "bytes=99999999-"}])
def test_head_tells_the_length_and_sends_nothing(
    made: dict[str, Any], content: bytes, headers: dict[str, str]
) -> None:
    answer = httpx2.head(made["output"], headers=headers)
    assert answer.status_code == 200
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "video/mp4"
    assert int(answer.headers["content-length"]) == len(content)
    assert answer.content == b""


def test_a_range_is_served_only_of_the_version_that_the_client_has(made: dict[str, Any]) -> None:
    whole = httpx2.get(made["output"])
    tags = [
        whole.headers["etag"],
        whole.headers["last-modified"],
        '"another"',
        "W/" + whole.headers["etag"],
    ]
    answers = [
        httpx2.get(made["output"], headers={"range": "bytes=0-9", "if-range": tag}) for tag in tags
    ]
    assert [answer.status_code for answer in answers] == [206, 206, 200, 200]
    assert answers[2].content == whole.content


def test_what_the_client_has_is_not_sent_again(made: dict[str, Any], content: bytes) -> None:
    tag = httpx2.head(made["output"]).headers["etag"]

    def answer(known: str) -> httpx2.Response:
        headers = {"if-none-match": known, "range": "bytes=0-9"}
        return httpx2.get(made["output"], headers=headers)

    for known in (tag, f'"another", {tag}', f"W/{tag}", "*"):
        unchanged = answer(known)
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == tag
        assert "private" in unchanged.headers["cache-control"]
    assert (answer('"another"').status_code, answer("").content) == (206, content[:10])


def test_v1_sends_the_whole_video_whatever_range_is_asked_for(server: Stack) -> None:
    answer = server.http().post("/v1/mochi-1", json=POND, headers={"range": "bytes=0-9"})
    assert answer.status_code == 200
    assert len(answer.content) == int(answer.headers["content-length"]) > 10


# Hosts


@pytest.mark.parametrize("host", ["videos.example", "videos.example:8443", "[::1]:80", "10.0.0.7"])
def test_links_lead_to_the_host_that_was_called(server: Stack, host: str) -> None:
    result = finished(server, server.http(), host=host)
    assert len(urls_in(result)) == 2
    assert all(url.startswith(f"http://{host}/v2/videos/") for url in urls_in(result))


def test_forwarded_headers_are_not_believed(server: Stack) -> None:
    forged = {
        "x-forwarded-for": "10.0.0.1",
        "x-forwarded-host": "evil.example",
        "x-forwarded-proto": "https",
        "x-forwarded-port": "444",
        "x-forwarded-prefix": "/evil",
        "forwarded": "for=10.0.0.1;host=evil.example;proto=https",
        "x-original-url": "/evil",
        "x-rewrite-url": "/evil",
    }
    submitted = server.http().post("/v2/mochi-1", json=POND, headers=forged)
    assert len(urls_in(submitted.json())) == 3
    assert all(url.startswith(f"{server.url}/v") for url in urls_in(submitted.json()))
    assert "evil" not in submitted.text + str(submitted.headers)


@pytest.mark.parametrize(
    "lines",
    [
        ["host: evil.example/path"],
        ["host: a b"],
        ["host: user@evil.example"],
        ["host: evil.example:x"],
        ["host: <script>"],
        ["host:"],
        ["host: one.example", "host: other.example"],
        [],
    ],
)
def test_an_invalid_host_is_400(server: Stack, lines: list[str]) -> None:
    head = ["GET /version HTTP/1.1", *lines]
    with connect(server.url) as connection:
        connection.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
        assert "Host" in refusal(read_answer(connection, "GET"), 400)


def test_a_configured_public_url_goes_before_the_host(server: Stack) -> None:
    gateway = another_gateway(server, public_url="https://videos.example:8443")
    client = server.http()
    submitted = client.post(f"{gateway}/v2/mochi-1", json=POND, headers={"host": "evil.example"})
    result = finished(server, client, base=gateway)
    for url in urls_in(submitted.json()) + urls_in(result):
        assert url.startswith("https://videos.example:8443/v")
    signed = urlsplit(result["output"])
    assert httpx2.get(f"{gateway}{signed.path}?{signed.query}").is_success


def test_a_proxy_whose_headers_would_change_links_and_are_not_trusted_is_warned_of_once(
    server: Stack,
) -> None:
    url = another_gateway(server)
    log = server.processes[-1]
    for _ in range(2):
        httpx2.get(f"{url}/version", headers={"x-forwarded-proto": "http"})
    assert "proxy.not_trusted" not in server.log_of(log)
    for _ in range(2):
        httpx2.get(f"{url}/version", headers={"x-forwarded-proto": "https"})
    assert server.log_of(log).count("proxy.not_trusted") == 1


def test_generate_asks_where_it_was_told_to_and_names_the_host_that_fails(
    server: Stack, tmp_path: Path
) -> None:
    url = another_gateway(server, public_url="http://127.0.0.1:1")
    done = server.run(
        *("generate", "a pond", "--frames", "1", "--steps", "10", "-o", str(tmp_path / "a.mp4")),
        MOCHI_URL=url,
        MOCHI_API_KEY=server.key(),
    )
    assert done.returncode == 1
    assert "No answer from http://127.0.0.1:1:" in done.stderr
    assert "download it with: curl" in done.stderr


# Ignored parameters


def ignored(server: Stack, **names: Any) -> list[str]:
    answer = server.http().post("/v2/mochi-1", json=POND | names)
    assert answer.status_code == 200
    value = answer.headers.get("x-ignored-parameters", "")
    assert value.isascii()
    assert value.isprintable()
    return [unquote(name) for name in value.split(", ")] if value else []


def test_nothing_is_said_where_nothing_is_ignored(server: Stack) -> None:
    answer = server.http().post("/v2/mochi-1", json=POND)
    assert "x-ignored-parameters" not in answer.headers


def test_unknown_parameters_are_accepted_and_named(server: Stack) -> None:
    assert ignored(server, width=848, base64=True, Prompt="x") == ["width", "base64", "Prompt"]


def test_v1_names_them_too(server: Stack) -> None:
    answer = server.http().post("/v1/mochi-1", json=POND | {"width": 848})
    assert answer.headers["x-ignored-parameters"] == "width"


def test_odd_names_cannot_leave_their_header(server: Stack) -> None:
    odd = {"a\r\nset-cookie: b=c": 1, "größe": 2, "名前": 3, "a, b": 4, "\x00": 5, "%41": 6}
    assert ignored(server, **odd) == list(odd)


def test_long_names_and_long_lists_are_cut(server: Stack) -> None:
    assert ignored(server, **{"x" * 10_000: 1}) == ["x" * 40]
    assert len(ignored(server, **{f"x{number}": 1 for number in range(1_000)})) == 20
