"""What `mochi-server generate` asks for, and what it says of its request."""

from __future__ import annotations

import socket
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer import BadParameter

from models.request.params import RequestParams
from server.cli import generate
from server.cli.access import Access
from server.cli.client import Client, where
from server.cli.main import app, load
from server.errors import ClientError
from server.transport.connection.listener import listen
from tests.support.services.brokers import free_port

RUNS = {"status": "PROCESSING", "step": 12, "total_steps": 30}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"status": "QUEUED", "stage": "queued", "queue_position": 3}, "queued, place 3"),
        (
            {"status": "QUEUED", "stage": "queued", "queue_position": 3, "eta_seconds": 71.6},
            "queued, place 3, about 72 s left",
        ),
        (RUNS | {"stage": "encoding_prompt"}, "encoding prompt"),
        (
            RUNS | {"stage": "denoising", "eta_seconds": 8.2},
            "denoising, step 12 of 30, about 8 s left",
        ),
        ({"status": "COMPLETED"}, "completed"),
    ],
)
def test_the_place_the_step_and_the_time_left_are_told_where_they_are_known(
    body: dict[str, Any], words: str
) -> None:
    assert where(body) == words


def test_every_parameter_of_a_video_is_an_option() -> None:
    offered = {param.name for param in load("generate").params}
    assert set(RequestParams.model_fields) <= offered


def test_a_prompt_without_quotes_is_told_so() -> None:
    with pytest.raises(BadParameter, match="Put the prompt into quotes"):
        app(["generate", "A", "red", "panda", "--api-key", "k"], standalone_mode=False)


def test_https_to_a_server_of_http_is_told_so(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        thread = Thread(target=answer_in_http, args=(listener,))
        thread.start()
        with pytest.raises(ClientError, match=f"If it speaks HTTP, use http://{address}"):
            Client(Access(f"https://{address}", "k")).generate({}, tmp_path / "a.mp4")
        thread.join()


def test_without_a_server_where_none_was_named_the_ways_to_name_one_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MOCHI_DATA_DIR", str(tmp_path))
    access = Access.of(None, "k")._replace(url=f"http://127.0.0.1:{free_port()}")
    ways = "--data-dir or MOCHI_DATA_DIR. For a server elsewhere, set MOCHI_URL or give --url."
    with pytest.raises(ClientError, match=ways):
        Client(access).generate({}, tmp_path / "a.mp4")


def answer_in_http(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("options", "file", "files"),
    [
        ((), "mochi-2.mp4", {}),
        (("-o", "a.mp4"), "a.mp4", {}),
        (("-o", "a.GIF"), "a.GIF", {"format": "gif"}),
        (("-o", "a.webm", "--format", "mp4"), "a.webm", {"format": "mp4"}),
        (("--format", "webm", "--poster"), "mochi.webm", {"format": "webm", "poster": True}),
        # The server refuses these, and says what there is.
        (("--format", "a/b"), "mochi-2.mp4", {"format": "a/b"}),
        (("--format", ""), "mochi-2.mp4", {"format": ""}),
    ],
)
def test_only_what_was_given_is_asked_for_and_no_file_is_overwritten_unless_named(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: tuple[str, ...],
    file: str,
    files: dict[str, Any],
) -> None:
    asked: list[tuple[dict[str, Any], str]] = []

    class Recorder:
        def __init__(self, *_: Access) -> None: ...

        def generate(self, params: dict[str, Any], output: Path, model: str) -> None:
            asked.append((params, output.name))
            assert model == "mochi-1"

    monkeypatch.setattr(generate, "Client", Recorder)
    monkeypatch.chdir(tmp_path)
    Path("mochi.mp4").touch()
    command = ["generate", "a pond", *options, "--guidance-scale", "3.5", "--seed", "0"]
    app([*command, "--api-key", "k"], standalone_mode=False)
    assert asked == [({"prompt": "a pond", "guidance_scale": 3.5, "seed": 0, **files}, file)]
    assert [path.name for path in tmp_path.iterdir()] == ["mochi.mp4"]
