"""Clients that offer another protocol with a request, h2c above all, are answered in HTTP/1.1."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.stack import Stack
from tests.support.wire import connect, read_answer, refusal

POND = b'{"prompt": "a pond"}'
OFFERS = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n",
    "websocket": b"connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n",
}
JAVA = """
import java.net.URI;
import java.net.http.*;

class Submit {
    public static void main(String[] url_and_key) throws Exception {
        var body = HttpRequest.BodyPublishers.ofString("{\\"prompt\\": \\"a pond\\"}");
        var request = HttpRequest.newBuilder(URI.create(url_and_key[0]))
            .header("x-api-key", url_and_key[1]).header("content-type", "application/json");
        var text = HttpResponse.BodyHandlers.ofString();
        var answer = HttpClient.newHttpClient().send(request.POST(body).build(), text);
        System.out.print(answer.statusCode() + " " + answer.body());
    }
}
"""


def _submit(key: str, offer: bytes) -> tuple[bytes, bytes]:
    """The head of a submit, and its body."""
    head = (
        b"POST /v2/mochi-1?dry_run=true HTTP/1.1\r\nhost: here\r\nx-api-key: %b\r\n" % key.encode()
    )
    length = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(POND)
    return head + offer + length, POND


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_an_offer_to_upgrade_is_ignored_and_the_body_read(server: Stack, offer: bytes) -> None:
    head, body = _submit(server.key(), offer)
    for parts in ([head + body], [head, body], [head[:-9], head[-9:], body[:5], body[5:]]):
        with connect(server.url) as connection:
            for part in parts:
                connection.sendall(part)
            assert read_answer(connection).status_code == 200


def test_many_offers_in_one_go_are_all_answered(server: Stack) -> None:
    head, body = _submit(server.key(), OFFERS["h2c"])
    with connect(server.url) as connection:
        connection.sendall((head + body) * 100)
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 100:
            received += connection.recv(65_536)
    assert b"HTTP/1.1 4" not in received


def test_a_body_behind_an_offer_hides_no_request(server: Stack) -> None:
    hidden = b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n"
    head = b"POST /v2/mochi-1 HTTP/1.1\r\nhost: here\r\nx-api-key: %b\r\n" % server.key().encode()
    length = b"content-length: %d\r\n\r\n" % len(hidden)
    with connect(server.url) as connection:
        connection.sendall(head + OFFERS["h2c"] + length + hidden)
        refusal(read_answer(connection), 406)
        assert connection.recv(1) == b""


def test_connect_is_refused_and_what_follows_it_unread(server: Stack) -> None:
    with connect(server.url) as connection:
        connection.sendall(b"CONNECT / HTTP/1.1\r\nhost: here\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        refusal(read_answer(connection), 405)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_that_prefers_http_2_submits(server: Stack) -> None:
    command = ["curl", "-sS", "--http2", "--max-time", "10", "--json", POND.decode()]
    headers = ["-H", f"x-api-key: {server.key()}", f"{server.url}/v2/mochi-1"]
    answer = subprocess.run([*command, *headers], check=True, capture_output=True, text=True)
    assert '"QUEUED"' in answer.stdout


@pytest.mark.skipif(not shutil.which("java"), reason="no Java is installed")
def test_the_client_of_java_submits(server: Stack, tmp_path: Path) -> None:
    source = tmp_path / "Submit.java"
    source.write_text(JAVA)
    call = ["java", str(source), f"{server.url}/v2/mochi-1", server.key()]
    answer = subprocess.run(call, check=False, capture_output=True, text=True)
    if "jdk.compiler" in answer.stderr:
        pytest.skip("only a Java runtime is installed, no compiler")
    assert answer.stdout.startswith("200 "), answer
