"""What tests of the HTTP surface share: the shape of errors, gateways beside and within a test."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx2
from fastapi import FastAPI

from server.settings import ServerSettings
from tests.support.stack import Stack, eventually

ANSWER_SECONDS = 30.0
BODY_LIMIT: int = ServerSettings.model_fields["body_bytes"].default
NO_KEY = "Missing Authorization or x-api-key in header"
SUBMITS = ["/v1/mochi-1", "/v2/mochi-1"]
LAST_CHUNK = b"0\r\n"
"""What comes after it are trailers."""
SOON_SECONDS = 10.0
"""No measure of speed: what tells an answer from a call that hangs."""


def refusal(answer: httpx2.Response, status: int) -> str:
    """The text of an error, which has one shape whatever went wrong: the SDK shows just this."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert isinstance(body["error"], str)
    assert body["error"]
    assert set(body) <= {"error", "parameters", "request_id"}
    return str(body["error"])


def submit(client: httpx2.Client, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    """The response to a submit that is accepted."""
    answer = client.post("/v2/mochi-1", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    submitted: dict[str, Any] = answer.json()
    return submitted


def ended(client: httpx2.Client, request_id: str) -> dict[str, Any]:
    """The result of a request, or its failure, once it has one."""

    def ask() -> dict[str, Any]:
        body: dict[str, Any] = client.get(f"/v2/requests/{request_id}").json()
        return body if body["status"] in {"COMPLETED", "FAILED"} else {}

    return eventually(ask)


def another_gateway(stack: Stack, **settings: str) -> str:
    """The URL of one more gateway on the same broker. `stack` goes on with its own."""
    own = stack.url
    try:
        return stack.start_gateway(**settings)
    finally:
        stack.url = own


def call(app: FastAPI, *requests: httpx2.Request, peer: str = "127.0.0.1") -> list[httpx2.Response]:
    """Send requests, one after the other, to an application within this process."""

    async def send() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app, client=(peer, 1))
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport) as client,
        ):
            return [await client.send(request) for request in requests]

    return asyncio.run(send())


def connect(url: str) -> socket.socket:
    """A raw connection, for what no HTTP library would send."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port), timeout=ANSWER_SECONDS)


def read_rest(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    try:
        while chunk := connection.recv(65_536):
            received += chunk
    except ConnectionResetError:
        pass  # it had not read all of what came
    return received


def another_address() -> str:
    """A random loopback address, for a client of its own: bad keys count by address."""
    return ".".join(["127", *(str(random.randrange(1, 255)) for _ in range(3))])


def stranger(stack: Stack, address: str = "") -> httpx2.Client:
    """A client without a key, from an address of its own."""
    # No certificates to verify: reading all of the world's takes a while.
    transport = httpx2.HTTPTransport(local_address=address or another_address(), verify=False)
    return httpx2.Client(base_url=stack.url, transport=transport, timeout=60)


def read_answer(connection: socket.socket, method: str = "POST") -> httpx2.Response:
    """One answer from a raw connection."""
    file = connection.makefile("rb")
    status = int(file.readline().split()[1])
    headers = []
    while line := file.readline().strip():
        name, _, value = line.partition(b":")
        headers.append((name.strip(), value.strip()))
    answer = httpx2.Response(status, headers=headers)
    body = b"" if method == "HEAD" else file.read(int(answer.headers.get("content-length", 0)))
    return httpx2.Response(status, headers=headers, content=body)


def chunked(line: str, key: str = "") -> bytes:
    """The head of a request whose body comes in chunks."""
    return (
        f"{line} HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
        f"x-api-key: {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    ).encode()


def assert_trailers_are_dropped(url: str, key: str) -> None:
    """Neither a key nor an idempotency key counts in a trailer."""
    trailer = b"x-api-key: %b\r\n\r\n" % key.encode()
    with connect(url) as connection:
        connection.sendall(chunked("GET /v1/get-user-credits") + LAST_CHUNK + trailer)
        refusal(read_answer(connection), 401)
    body = b'{"prompt": "a pond"}'
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    trailer = b"idempotency-key: one\r\n\r\n"
    ids = set()
    with connect(url) as connection:
        for _ in range(2):
            connection.sendall(chunked("POST /v2/mochi-1", key) + chunk + LAST_CHUNK + trailer)
            ids.add(read_answer(connection).json()["request_id"])
    assert len(ids) == 2
