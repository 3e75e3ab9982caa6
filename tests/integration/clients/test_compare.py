"""`mochi-server compare` with two local servers, one of which answers otherwise."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from server.cli.hosted.differences import ABSENT
from tests.support.services.brokers import free_port
from tests.support.stack import Stack

Alter = Callable[[str, int, Any], tuple[int, Any]]
"""Gets the path, the status and the JSON of an answer, and returns status and JSON."""
SHORT = ("steps=10", "frames=52", "fps=24.5")
PARAMETERS = {"prompt": "A red panda drinks tea", "steps": 10, "frames": 52, "fps": 24.5}


@contextmanager
def altered(url: str, alter: Alter, **replaced: object) -> Iterator[str]:
    """A server that answers as the one at `url`, but for JSON that `alter` changes.

    `replaced`: parameters that it takes in place of those that came.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET", None)

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._answer("POST", sent | replaced)

        def _answer(self, verb: str, body: object) -> None:
            headers = {name: self.headers[name] for name in ("host", "x-api-key")}
            headers = {name: value for name, value in headers.items() if value}
            answer = httpx2.request(verb, url + self.path, json=body, headers=headers, timeout=60)
            status, content = answer.status_code, answer.content
            if answer.headers["content-type"] == "application/json":
                status, told = alter(self.path, status, answer.json())
                content = json.dumps(told).encode()
            self.send_response(status)
            for name, value in answer.headers.items():
                if name not in {"content-length", "date", "server", "connection"}:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.send_header("cf-ray", "8f3")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def compare(
    stack: Stack, hosted: str, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    keys = {"MOCHI_API_KEY": stack.key(), "SEGMIND_API_KEY": stack.key()} | variables
    ended = stack.run("compare", "--hosted", hosted, "--local", stack.url, *options, **keys)
    assert not [key for key in keys.values() if key and key in ended.stdout + ended.stderr]
    return ended


def rows(ended: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict[str, str]]:
    return {(row["call"], row["what"]): row for row in json.loads(ended.stdout)["rows"]}


def hosted_fields(_path: str, status: int, body: Any) -> tuple[int, Any]:
    """Without the fields that are additions of this server."""
    added = {"stage", "step", "total_steps", "progress", "attempt", "cancel_url", "events_url",
             "expires_at", "warnings", "error_code", "eta_seconds", "queue_position"}  # fmt: skip
    return status, {name: value for name, value in body.items() if name not in added}


def test_additions_and_a_cdn_are_known_differences(server: Stack) -> None:
    with altered(server.url, hosted_fields) as hosted:
        ended = compare(server, f"{hosted}/v1", *SHORT, "--yes", "--json", "--blocking")
    assert ended.returncode == 0, ended.stdout
    table = rows(ended)
    assert json.loads(ended.stdout)["payload"] == PARAMETERS
    stage = table["last status", "progress"]
    assert (stage["hosted"], stage["local"], stage["verdict"]) == (ABSENT, "number", "known")
    assert "Additions of this server" in stage["reason"]
    assert ("submit", "header cf-ray") not in table
    assert table["submit", "status_url"]["hosted"] == "string (URL, /v2/requests/{id}/status)"
    assert table["result", "seed"]["local"] == "number 985521"
    for call in "video", "blocking":
        assert table[call, "frames"]["hosted"] == table[call, "frames"]["local"] == "52"
        assert table[call, "frames a second"]["local"] == "24.5"
        assert table[call, "size"]["local"].startswith("848")
        assert table[call, "codec"]["local"].startswith("h264, yuv420p")
    assert table["blocking", "header x-cost"]["verdict"] == ""
    assert float(table["blocking", "seconds"]["local"]) > 0


def test_another_type_of_seed_another_status_and_other_frames_are_found(server: Stack) -> None:
    def other(path: str, status: int, body: Any) -> tuple[int, Any]:
        if "seed" in body:
            body["seed"] = str(body["seed"])
        if path.startswith("/v1/requests/"):
            status = 410
        return status, body

    with altered(server.url, other, frames=49) as hosted:
        ended = compare(server, hosted, *SHORT, "--yes")
    assert ended.returncode == 1, ended.stderr
    found = [
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in ended.stdout.splitlines()
        # Whether the server, here on both sides, has a status while the request waits is chance.
        if "DIFFERS" in line and "queue_position" not in line
    ]
    assert ["result", "seed", 'string "985521"', "number 985521", "DIFFERS"] in found
    assert ["v1 result", "status code", "410", "200", "DIFFERS"] in found
    assert ["video", "frames", "49", "52", "DIFFERS"] in found
    assert ["video", "duration", "2.00 s", "2.12 s", "DIFFERS"] in found
    assert len(found) == 5, found
    assert re.search(r"^[5-9] unknown differences\n\Z", ended.stdout, re.MULTILINE)


def test_additions_are_named_below_the_table(server: Stack) -> None:
    with altered(server.url, hosted_fields) as hosted:
        ended = compare(server, hosted, *SHORT, "--yes")
    assert ended.returncode == 0, ended.stderr
    *table, known, summary = ended.stdout.splitlines()
    assert "total_steps" not in "".join(table)
    assert known.startswith("known 1: Additions of this server, ")
    assert "progress, " in known
    assert summary == "0 unknown differences"


def test_a_refusal_that_is_another_one_there_is_found(server: Stack) -> None:
    def without_credits(path: str, status: int, body: Any) -> tuple[int, Any]:
        return (402, {"error": "Insufficient credits"}) if path == "/v2/mochi-1" else (status, body)

    with altered(server.url, without_credits) as hosted:
        ended = compare(server, hosted, *SHORT, "--yes", "--json")
    assert ended.returncode == 1
    table = rows(ended)
    assert table["submit", "status code"]["verdict"] == "DIFFERS"
    assert table["submit", "status code"]["hosted"] == "402"
    assert (table["result", "call"]["hosted"], table["result", "call"]["local"]) == (ABSENT, "made")


def test_that_the_hosted_api_validates_late_is_known(server: Stack) -> None:
    def late(path: str, status: int, body: Any) -> tuple[int, Any]:
        request_id = "4d0d3fcb-6f43-4a35-9be4-0b7d0c7f4d9e"
        if path == "/v2/mochi-1":
            return 200, {"request_id": request_id, "status": "QUEUED", "status_url": "http://a/b"}
        if "/requests/" in path:
            return 422, {
                "request_id": request_id,
                "status": "FAILED",
                "error": "steps",
                "metrics": {},
            }
        return status, body

    with altered(server.url, late) as hosted:
        ended = compare(server, hosted, "steps=5", "--yes", "--json")
    assert ended.returncode == 0, ended.stdout
    code = rows(ended)["submit", "status code"]
    assert (code["hosted"], code["local"], code["verdict"]) == ("200", "400", "known")


def test_credits_are_not_spent_unasked_nor_while_there_is_nothing_to_compare_with(
    server: Stack,
) -> None:
    asked: list[str] = []

    def note(path: str, status: int, body: Any) -> tuple[int, Any]:
        asked.append(path)
        return status, body

    with altered(server.url, note) as hosted:
        unasked = compare(server, hosted)
        alone = compare(server, hosted, "--yes", "--local", f"http://127.0.0.1:{free_port()}")
        keyless = compare(server, hosted, "--yes", SEGMIND_API_KEY="")
    assert f"Ask {hosted} for one video, for your credits?" in unasked.stderr
    assert unasked.returncode == alone.returncode == keyless.returncode == 1
    assert "Without a terminal, say so with --yes." in unasked.stderr
    assert re.search(
        r"The local server .* http://127\.0\.0\.1:\d+: .*mochi-server up", alone.stderr
    )
    assert "Set SEGMIND_API_KEY." in keyless.stderr
    assert asked == []


@pytest.mark.parametrize(
    ("variable", "refusal"),
    [
        ("SEGMIND_API_KEY", "The hosted API refused its key (401): Invalid API key"),
        ("MOCHI_API_KEY", "The local server refused its key (401): Invalid API key"),
    ],
)
def test_a_refused_key_ends_the_comparison_and_is_named(
    server: Stack, variable: str, refusal: str
) -> None:
    keys = {name: server.key() for name in ("SEGMIND_API_KEY", "MOCHI_API_KEY")}
    ended = compare(server, server.url, *SHORT, "--yes", **keys | {variable: "mochi_wrong"})
    assert ended.returncode == 1
    assert ended.stderr.startswith(refusal)
    assert f"The key is from {variable}" in ended.stderr
    assert not ended.stdout
    for key in keys.values():  # no video was made for nothing
        assert server.http(key).get("/v1/videos").json()["data"] == []


def test_equal_rows_are_shown_when_asked_for(server: Stack) -> None:
    ended = compare(server, server.url, "steps=5", "--yes")
    assert ended.stdout == "0 unknown differences\n"
    assert ended.stderr == "No video was looked at: no answer has one.\n"
    ended = compare(server, server.url, "steps=5", "--yes", "--all")
    assert ["submit", "status code", "400", "400"] in [
        re.split(r"\s{2,}", line.strip()) for line in ended.stdout.splitlines()
    ]


def test_what_is_no_parameter_is_refused(server: Stack) -> None:
    ended = compare(server, "http://127.0.0.1:1", "frames")
    assert ended.returncode == 2
    assert "expected NAME=VALUE, like frames=49" in ended.stderr


@pytest.mark.parametrize("value", ["", "here"])
def test_an_address_that_is_none_is_refused(server: Stack, value: str) -> None:
    ended = compare(server, value, *SHORT, "--yes")
    assert ended.returncode == 1
    assert "No answer from" in ended.stderr
