"""Real clients that know nothing but the hosted API, under `mochi-server wrap`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.integration.clients.wrap.wrapped import BODY, Wrapped, python
from tests.support.stack import Stack


def test_the_sdk_without_arguments_reaches_the_local_server(server: Stack, folder: Path) -> None:
    code = """
from pathlib import Path
import httpx2
from segmind import SegmindClient
client = SegmindClient()
result = client.run("mochi-1", **body)
job = client.submit_async("mochi-1", **body)
links = [result["output"], *job.submit_response.values()]
print(json.dumps([link for link in links if ":" in link]))
assert httpx2.get(result["output"]).content[4:8] == b"ftyp"
assert job.wait(interval=0.05)["status"] == "COMPLETED"
assert client.run_sync("mochi-1", **body).content[4:8] == b"ftyp"
"""
    links = json.loads(python(server, folder, code))
    assert len(links) == 4
    assert all(link.startswith("https://api.segmind.com/v") for link in links)


def test_so_do_all_its_other_calls_whatever_their_host(server: Stack, folder: Path) -> None:
    code = """
from segmind import SegmindClient
from segmind.exceptions import SegmindError
client = SegmindClient()
request_id = client.run("mochi-1", **body)["request_id"]
assert client.accounts.current()["user_id"]
assert client.models.list()
assert client.generations.get(request_id)["model_status"] == "COMPLETED"
assert client.generations.history()["total"] == client.generations.list()["total"] == 1
assert client.generations.recent("mochi-1")["generations"][0]["request_id"] == request_id
assert client.webhooks.get() == {"webhooks": []}
for call in (client.finetune.list, lambda: client.pixelflows.run("a-flow")):
    try:
        call()
    except SegmindError as error:
        print(error.status, "which the hosted API has" in error.detail)
"""
    assert python(server, folder, code) == "404 True\n404 True\n"


def test_requests_and_httpx2_reach_it_with_the_hosted_address_in_them(
    server: Stack, folder: Path
) -> None:
    code = """
import httpx2, requests
assert requests.post(url, json=body, headers=headers).content[4:8] == b"ftyp"
assert httpx2.post(url, json=body, headers=headers, timeout=60).content[4:8] == b"ftyp"
answer = requests.get("http://api.segmind.com/v1/get-user-credits", headers=headers)
print(answer.status_code, "credits" in answer.json())
"""
    assert python(server, folder, code) == "200 True\n"


def test_a_body_of_megabytes_and_many_calls_at_once_pass(server: Stack, folder: Path) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
import httpx2
with httpx2.Client(headers=headers, timeout=60) as client, ThreadPoolExecutor(20) as threads:
    large = client.post(url, json={"prompt": "x" * 5_000_000})
    ask = lambda number: client.get("https://api.segmind.com/v1/get-user-credits").status_code
    print(large.status_code, {*threads.map(ask, range(200))}, large.http_version)
"""
    assert python(server, folder, code) == "413 {200} HTTP/1.1\n"


def test_a_blocking_call_that_is_given_up_is_cancelled(server: Stack, folder: Path) -> None:
    code = """
import subprocess, sys, time, httpx2
def first():
    listed = httpx2.get("https://api.segmind.com/v1/videos", headers=headers, timeout=60)
    return (listed.json()["data"] or [{"status": "queued"}])[0]
slow = json.dumps(body | {"x-mock-scenario": "slow:60"})
sent = ["-H", "content-type: application/json", "-H", "x-api-key: " + headers["x-api-key"]]
caller = subprocess.Popen(["curl", "-sS", *sent, "-d", slow, url])
while first()["status"] == "queued":
    time.sleep(0.05)
caller.kill()
while first()["status"] != "failed":
    time.sleep(0.05)
print(first()["error"]["code"])
"""
    assert python(server, folder, code) == "cancelled\n"


def test_curl_reaches_the_local_server(server: Stack, folder: Path) -> None:
    video = folder / "pond.mp4"
    call = ["curl", "-sS", "-H", "content-type: application/json", "-d", json.dumps(BODY)]
    script = f'{shutil.which("curl")} "$@" -H "x-api-key: $SEGMIND_API_KEY" -o {video}'
    done = Wrapped(server, folder, "sh", "-c", script, *call, "https://api.segmind.com/v1/mochi-1")
    assert (done.status, done.errors) == (0, "")
    assert video.read_bytes()[4:8] == b"ftyp"
