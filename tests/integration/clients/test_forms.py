"""Clients that send forms, as the hosted API takes them, and that name a file after its link."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest
import requests

from tests.support.stack import Stack, eventually

FIELDS = {"prompt": "a pond & a café", "frames": "1", "steps": "10"}
NODE = """
const [url, key, fields] = process.argv.slice(1);
const form = new FormData();
for (const [name, value] of Object.entries(JSON.parse(fields))) form.append(name, value);
const headers = { "x-api-key": key };
for (const body of [form, new URLSearchParams(form)]) {
  const response = await fetch(url, { method: "POST", headers, body });
  console.log((await response.json()).request_id);
}
"""


def were_accepted(server: Stack, *request_ids: str) -> bool:
    """Whether each request has the fields of the form."""
    found = [json.loads(server.record(request_id)["params"]) for request_id in request_ids]
    return all(
        (params["prompt"], params["frames"], params["steps"]) == (FIELDS["prompt"], 1, 10)
        for params in found
    )


def run(*command: str, folder: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_forms_of_requests_and_httpx_are_taken(server: Stack) -> None:
    url, headers = f"{server.url}/v2/mochi-1", {"x-api-key": server.key()}
    parts = {name: (None, value) for name, value in FIELDS.items()}
    answers = [
        requests.post(url, data=FIELDS, headers=headers, timeout=60).json(),
        requests.post(url, files=parts, headers=headers, timeout=60).json(),
        httpx2.post(url, data=FIELDS, headers=headers).json(),
        httpx2.post(url, files=parts, headers=headers).json(),
    ]
    assert were_accepted(server, *(answer["request_id"] for answer in answers))


def test_forms_of_curl_are_taken_and_a_file_is_named_after_its_link(
    server: Stack, tmp_path: Path
) -> None:
    url, key = f"{server.url}/v2/mochi-1", server.key()
    curl = ("curl", "--silent", "--show-error", "-H", f"x-api-key: {key}")
    parts = [part for name, value in FIELDS.items() for part in ("-F", f"{name}={value}")]
    pairs = [
        part for name, value in FIELDS.items() for part in ("--data-urlencode", f"{name}={value}")
    ]
    multipart, urlencoded = (json.loads(run(*curl, *form, url)) for form in (parts, pairs))
    assert were_accepted(server, multipart["request_id"], urlencoded["request_id"])
    client = server.http(key)
    result = eventually(
        lambda: (body := client.get(multipart["response_url"]).json()).get("output") and body
    )
    run("curl", "--silent", "--remote-name", result["output"], folder=tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == f"{multipart['request_id']}.mp4"
    assert file.read_bytes()[4:8] == b"ftyp"


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js on the PATH")
def test_forms_of_nodes_fetch_are_taken(server: Stack) -> None:
    url, fields = f"{server.url}/v2/mochi-1", json.dumps(FIELDS)
    told = run("node", "--input-type=module", "-e", NODE, url, server.key(), fields)
    assert were_accepted(server, *told.split())
