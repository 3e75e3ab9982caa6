"""Wherever a client's text reaches a codec or a parser, odd text is no bug of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import pytest

from tests.support.stack import Stack
from tests.support.wire import connect, read_answer

ODD = [
    *(b"\x7f", b"\x80", b"\xff\xfe", b"\xed\xa0\x80", "é".encode(), "❤".encode(), "٣".encode()),
    *(b"xn--", b"xn--a", b"[::1", b"]", b"..", b"/../", b"*", b"?", b"#", b"%", b"%00", b"%zz"),
    *(b"\xb2", b"-1", b"1e999", b"nan", b"0x1", b"9" * 5000, b"0" * 4400, b"a" * 9000),
    *(b"", b";", b",", b"=", b'"', b"\\", b"'", b"\t", b"{}", b"\xc2\xa0", b"+", b"&&&"),
]
HEADERS = [
    *(b"range: bytes=", b"range: bytes=0-", b"range: bytes=-", b"if-range: ", b"x-mock-scenario: "),
    *(b"if-none-match: ", b"last-event-id: ", b"idempotency-key: ", b"authorization: Bearer "),
    *(b"traceparent: ", b"tracestate: ", b"x-forwarded-for: ", b"host: ", b"accept-encoding: "),
]
JSON = {"content-type": "application/json"}
FORM = b"multipart/form-data; boundary="
HOSTS = ["xn--", "xn--a.example", "xn--i-7iq.ws", "i❤.ws", "\ud800.example", "xn--ü.example"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", ["/v1/mochi-1", "/v2/mochi-1?dry_run=true", "/v1/videos"])
def test_a_webhooks_host_in_bad_punycode_is_no_bug(server: Stack, path: str, host: str) -> None:
    # Too many frames, too: where the host is a good one, they are refused.
    body = {"prompt": "a pond", "frames": 162, "webhook_url": f"https://{host}/hook"}
    answer = server.http().post(path, content=json.dumps(body), headers=JSON)
    assert answer.status_code == 400, answer.text


def test_odd_text_in_any_place_is_never_a_bug_of_the_server(server: Stack) -> None:
    for request in _requests(server):
        with connect(server.url) as connection:
            connection.sendall(request)
            answer = read_answer(connection)
        assert answer.status_code < 500, (request[:300], answer.text)


def _requests(server: Stack) -> Iterator[bytes]:
    """Each odd text in each place of a request."""
    client = server.http()
    video = client.post("/v1/videos", json={"prompt": "a pond", "frames": 1, "steps": 10}).json()
    one = f"/v1/videos/{video['id']}".encode()
    key = b"x-api-key: %b\r\n" % client.headers["x-api-key"].encode()
    for odd in ODD:
        quoted = quote_from_bytes(odd).encode()
        for path in (b"/v2/requests/", b"/v1/videos?limit=", b"/v1/videos?after=", b"/docs/"):
            yield _get(path + quoted, key)
        yield _get(b"/v2/videos/%b.mp4?signature=%b" % (quoted, quoted), key)
        yield _get(b"/" + odd.replace(b"\t", b""), key)
        for header in HEADERS:
            yield _get(one + b"/content", header + odd + b"\r\n" + key)
        yield _post(b"application/json; charset=" + odd, b'{"prompt": 1}', key)
        yield _post(FORM + odd, b"--%b--\r\n" % odd, key)
        for field in (
            b"name=%b",
            b'name="seed"; filename=%b',
            b"name*=utf-8''%b",
            b'name=""\r\n%b: x',
        ):
            disposition = b"--b\r\ncontent-disposition: form-data; " + field % odd
            yield _post(FORM + b"b", disposition + b"\r\n\r\n%b\r\n--b--\r\n" % odd, key)


def _get(path: bytes, headers: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nhost: here\r\n%bconnection: close\r\n\r\n" % (path, headers)


def _post(media_type: bytes, body: bytes, headers: bytes) -> bytes:
    head = b"POST /v1/videos HTTP/1.1\r\nhost: here\r\ncontent-type: %b\r\n" % media_type
    return head + headers + b"content-length: %d\r\n\r\n" % len(body) + body
