"""Cancelling over HTTP: by the route, by hanging up, and who may."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx2
import psutil
import pytest

from server.keys.lookup import Scope
from tests.support.stack import COMMAND, Stack, eventually, start_command
from tests.support.wire import another_gateway, connect, ended, refusal

LONG = {"prompt": "a pond", "frames": 1, "steps": 75}
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker; a long request takes more than seven seconds."""
    folder = tmp_path_factory.mktemp("cancel")
    with Stack(folder, engine="fake", fake_step_seconds="0.1") as stack:
        stack.start_gateway(drain_seconds="2")
        stack.start_worker()
        yield stack


@pytest.fixture
def client(stack: Stack) -> httpx2.Client:
    return stack.http()


def submit(client: httpx2.Client) -> dict[str, Any]:
    body: dict[str, Any] = client.post("/v2/mochi-1", json=LONG).json()
    return body


def wait_until_runs(stack: Stack, request_id: str) -> None:
    eventually(lambda: int(stack.record(request_id).get("step", 0)) >= 2)


def test_a_waiting_and_a_running_request_end_cancelled(stack: Stack, client: httpx2.Client) -> None:
    running, waiting = (submit(client)["request_id"] for _ in range(2))
    wait_until_runs(stack, running)
    for request_id in (waiting, running):
        answer = client.put(f"/v2/requests/{request_id}/cancel")
        assert answer.status_code == 202
        assert answer.json() == {"status": "CANCELLATION_REQUESTED", "request_id": request_id}
        body = ended(client, request_id)
        assert (body["status"], body["error_code"]) == ("FAILED", "cancelled")
        assert body["error"] == "The request was cancelled."
        assert "cost" not in body["metrics"]
        again = client.put(f"/v2/requests/{request_id}/cancel")
        assert again.status_code == 200
        assert again.json()["status"] == "ALREADY_COMPLETED"
    assert "worker" not in stack.record(waiting)
    assert int(stack.record(running)["step"]) < LONG["steps"]  # type: ignore[operator]


def test_the_status_says_where_to_cancel_until_the_end(stack: Stack, client: httpx2.Client) -> None:
    request_id = submit(client)["request_id"]
    url = client.get(f"/v2/requests/{request_id}/status").json()["cancel_url"]
    assert url == f"{stack.url}/v2/requests/{request_id}/cancel"
    assert client.put(url).status_code == 202
    body = ended(client, request_id)
    assert "cancel_url" not in body


def test_delete_cancels_as_well(client: httpx2.Client) -> None:
    request_id = submit(client)["request_id"]
    assert client.delete(f"/v2/requests/{request_id}").status_code == 202
    assert ended(client, request_id)["error_code"] == "cancelled"


def test_only_the_owner_cancels_and_only_with_the_scope(
    stack: Stack, client: httpx2.Client
) -> None:
    request_id = submit(client)["request_id"]
    path = f"/v2/requests/{request_id}/cancel"
    stranger, reader = stack.http(), stack.http(stack.key(scopes=frozenset({Scope.READ})))
    assert refusal(stranger.put(path), 404) == f"Request {request_id} not found"
    assert refusal(client.put(f"/v2/requests/{UNKNOWN}/cancel"), 404)
    assert "scope `generate`" in refusal(reader.put(path), 403)
    assert refusal(httpx2.put(stack.url + path), 401)
    assert client.get(f"/v2/requests/{request_id}/status").is_success
    assert client.put(path).status_code == 202


def block(stack: Stack, key: str, url: str = "", **headers: str) -> tuple[Any, str]:
    """A blocking call on a connection of its own, and the request that it made, which runs."""
    client = stack.http(key)
    connection = connect(url or stack.url)
    body = b'{"prompt": "a pond", "frames": 1, "steps": 75}'
    lines = [
        "POST /v1/mochi-1 HTTP/1.1",
        "host: here",
        f"x-api-key: {client.headers['x-api-key']}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    before = set(stack.redis.keys("mochi:request:*"))
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    (name,) = eventually(lambda: set(stack.redis.keys("mochi:request:*")) - before)
    request_id = str(name).rpartition(":")[2]
    wait_until_runs(stack, request_id)
    return connection, request_id


def test_a_blocking_call_that_hangs_up_is_cancelled(stack: Stack) -> None:
    key = stack.key()
    connection, request_id = block(stack, key)
    connection.close()
    assert ended(stack.http(key), request_id)["error_code"] == "cancelled"


def test_a_blocking_call_that_hangs_up_runs_on_where_the_operator_says_so(stack: Stack) -> None:
    key = stack.key()
    patient = another_gateway(stack, cancel_on_disconnect="false")
    connection, request_id = block(stack, key, patient)
    connection.close()
    assert ended(stack.http(key), request_id)["status"] == "COMPLETED"


def test_a_blocking_call_that_can_come_back_is_not(stack: Stack) -> None:
    key = stack.key()
    connection, request_id = block(stack, key, idempotency_key="come back")
    connection.close()
    time.sleep(1)
    assert stack.record(request_id)["status"] == "PROCESSING"
    assert "cancelled" not in stack.record(request_id)
    again = stack.http(key).post("/v1/mochi-1", json=LONG, headers={"idempotency-key": "come back"})
    assert again.status_code == 200
    assert again.headers["x-request-id"] == request_id
    assert again.headers["idempotency-replayed"] == "true"


def test_a_hang_up_while_the_broker_hangs_is_not_forgotten(stack: Stack) -> None:
    key = stack.key()
    connection, request_id = block(stack, key)
    broker = psutil.Process(stack.redis.info("server")["process_id"])
    broker.suspend()
    connection.close()
    time.sleep(3)
    broker.resume()
    assert ended(stack.http(key), request_id)["error_code"] == "cancelled"


def test_a_gateway_that_stops_tells_blocking_calls_where_to_poll(stack: Stack) -> None:
    key = stack.key()
    connection, request_id = block(stack, key)
    gateway = stack.processes[0]
    gateway.send_signal(signal.SIGTERM)
    answer = b""
    while chunk := connection.recv(65536):
        answer += chunk
    connection.close()
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert f'"request_id":"{request_id}"'.encode() in answer
    assert f"poll /v2/requests/{request_id}".encode() in answer
    assert b"This gateway stops before the video is ready. The request is kept: " in answer
    assert f"x-request-id: {request_id}".encode() in answer
    assert gateway.wait(10) == 0
    stack.start_gateway(drain_seconds="2")
    assert "cancelled" not in stack.record(request_id)
    assert ended(stack.http(key), request_id)["status"] == "COMPLETED"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_command_line_frees_the_worker_and_leaves_no_file(
    stack: Stack, tmp_path: Path, number: signal.Signals
) -> None:
    key = stack.key()
    command = [COMMAND, "generate", "a pond", "--steps", "75"]
    before = set(stack.redis.keys("mochi:request:*"))
    with subprocess.Popen(
        [*command, "--url", stack.url, "--api-key", key],
        env=stack.environ,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        (name,) = eventually(lambda: set(stack.redis.keys("mochi:request:*")) - before)
        request_id = str(name).rpartition(":")[2]
        wait_until_runs(stack, request_id)
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "The request is cancelled." in said
    assert ended(stack.http(key), request_id)["error_code"] == "cancelled"
    assert not (tmp_path / "mochi.mp4").exists()


@contextmanager
def slow_answers(url: str, submitted: Event, released: Event) -> Iterator[str]:
    """A proxy that passes the first submit on and keeps its response back."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self._pass_on()

        def do_PUT(self) -> None:
            self._pass_on()

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"] or 0))
            answer = httpx2.request(
                self.command, url + self.path, content=body, headers=dict(self.headers.items())
            )
            if not submitted.is_set():
                submitted.set()
                released.wait(60)
                return
            self.send_response(answer.status_code)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_ctrl_c_cancels_a_request_of_generate_whose_id_has_not_come_yet(
    stack: Stack, tmp_path: Path
) -> None:
    key = stack.key()
    submitted, released = Event(), Event()
    output, errors = tmp_path / "output", tmp_path / "errors"
    with slow_answers(stack.url, submitted, released) as url:
        environ = stack.environ | {"MOCHI_API_KEY": key, "MOCHI_URL": url}
        call = ["generate", "a pond", "--steps", "75", "-o", str(tmp_path / "pond.mp4")]
        process = start_command(call, environ, output, errors)
        try:
            assert submitted.wait(60)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()
    (video,) = stack.http(key).get("/v1/videos").json()["data"]
    assert ended(stack.http(key), video["id"])["error_code"] == "cancelled"
    assert "The request is cancelled." in errors.read_text()
