"""`mochi-server wrap` around real clients that know nothing but the hosted API."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from models.version import this_build
from tests.support.services.brokers import free_port
from tests.support.stack import COMMAND, Stack, eventually, start_command
from tests.support.wire import another_gateway

LOCAL_CALLS_ONLY = """
import sys
def watch(event, arguments):
    if event == "socket.getaddrinfo":
        assert arguments[0] in ("127.0.0.1", b"127.0.0.1"), arguments
    if event == "socket.connect":
        assert arguments[1][0] == "127.0.0.1", arguments
sys.addaudithook(watch)
"""
"""The program fails when it looks for, or calls, any other host."""
BODY = {"prompt": "a pond", "frames": 1, "steps": 10}
CALL = f"""
import json, os
url, headers = "https://api.segmind.com/v1/mochi-1", {{"x-api-key": os.environ["SEGMIND_API_KEY"]}}
body = {BODY}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where temporary folders are made."""
    return tmp_path_factory.mktemp("wrap")


class Wrapped:
    """A command that has been run."""

    def __init__(self, stack: Stack, folder: Path, *command: str, **variables: str) -> None:
        environ = {"MOCHI_URL": stack.url, "MOCHI_API_KEY": stack.key(), "TMPDIR": str(folder)}
        self.run = stack.run("wrap", "--", *command, **environ | variables)
        self.status, self.output, self.errors = (
            self.run.returncode,
            self.run.stdout,
            self.run.stderr,
        )
        assert not [*folder.glob("mochi-server-wrap-*")]


def python(stack: Stack, folder: Path, code: str) -> str:
    """What the program prints that ran to its end and called no other host."""
    done = Wrapped(stack, folder, sys.executable, "-c", LOCAL_CALLS_ONLY + CALL + code)
    assert (done.status, done.errors) == (0, "")
    return done.output


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


HAS_NODE = pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")


@HAS_NODE
def test_every_node_reaches_the_local_server_by_fetch_and_by_https(
    server: Stack, folder: Path
) -> None:
    code = f"""
import https from "node:https";
import http from "node:http";
const url = "https://api.segmind.com/v1/mochi-1", body = JSON.stringify({json.dumps(BODY)});
const headers = {{"x-api-key": process.env.SEGMIND_API_KEY, "content-type": "application/json"}};
const show = (status, bytes) => console.log(status, bytes.subarray(4, 8).toString());
const response = await fetch(url, {{ method: "POST", headers, body }});
show(response.status, Buffer.from(await response.arrayBuffer()));
await new Promise((done) => https.request(url, {{ method: "POST", headers }}, (answer) => {{
  const chunks = [];
  answer.on("data", (chunk) => chunks.push(chunk));
  answer.on("end", () => done(show(answer.statusCode, Buffer.concat(chunks))));
}}).end(body));
const plain = "http://api.segmind.com/version";
console.log((await fetch(plain)).status, (await fetch(process.env.MOCHI_URL + "/version")).status);
const answer = await new Promise((done) => http.get(plain, done));
console.log(answer.resume().statusCode);  // unread, it would keep the program alive
console.log(process.title);
"""
    call = ("node", "--input-type=module", "-e", code)
    done = Wrapped(server, folder, *call, NODE_OPTIONS="--title=mine")
    told = ["200 ftyp", "200 ftyp", "200 200", "200", "mine"]
    assert (done.status, done.output.splitlines(), done.errors) == (0, told, "")


@HAS_NODE
def test_other_hosts_are_refused_to_node_too(server: Stack, folder: Path) -> None:
    code = """
import https from "node:https";
for (const url of ["https://example.com/", "http://example.com/"])
  await fetch(url).then(console.log, () => {});
https.get("https://example.com/", console.log).on("error", () => {});
"""
    done = Wrapped(server, folder, "node", "--input-type=module", "-e", code)
    assert (done.status, done.output) == (0, "")
    assert "3 refused connections: example.com (3)." in done.errors


def test_other_names_of_the_hosted_api_lead_to_the_same_server(server: Stack, folder: Path) -> None:
    code = """
import httpx2
for host in ("cloud", "workflows-api", "api.spotprod"):
    print(httpx2.get(f"https://{host}.segmind.com/version").json()["version"])
"""
    assert python(server, folder, code) == f"{this_build().version}\n" * 3


def test_every_other_host_is_refused_and_said_once_with_the_counts_at_the_end(
    server: Stack, folder: Path
) -> None:
    code = """
import httpx2, requests
for host in ("segmind.com.example.com", "notsegmind.com", "127.0.0.2"):
    for scheme in ("https", "https", "http"):
        try:
            print(httpx2.get(f"{scheme}://{host}/").status_code)
        except httpx2.ProxyError as error:
            print(error)
try:
    requests.get("https://example.com")
except requests.exceptions.ProxyError as error:
    print("requests" in str(error))
"""
    done = Wrapped(server, folder, sys.executable, "-c", LOCAL_CALLS_ONLY + code)
    refusal = "mochi-server wrap: refused {}: only *.segmind.com can be reached, at " + server.url
    names = ["segmind.com.example.com", "notsegmind.com", "127.0.0.2", "example.com"]
    assert done.status == 0
    assert done.output.count(f"403 {refusal.format('notsegmind.com')}\n") == 2
    assert done.output.count("403\n") == 3
    assert done.errors.splitlines()[:4] == [refusal.format(name) for name in names]
    assert "10 refused connections: segmind.com.example.com (3), " in done.errors
    assert "called no *.segmind.com" in done.errors.splitlines()[-1]


def test_links_to_where_the_server_says_that_they_lead_are_led_there(
    server: Stack, folder: Path
) -> None:
    here = f"http://127.0.0.2:{free_port()}"  # not among the hosts that need no proxy
    port = here.rpartition(":")[2]
    url = another_gateway(server, host="127.0.0.2", port=port, public_url=here, docs="false")
    code = """
import httpx2
submitted = httpx2.post(url.replace("v1", "v2"), json=body, headers=headers).json()
poll = submitted["poll_url"]
while (result := httpx2.get(poll, headers=headers).json())["status"] != "COMPLETED":
    assert result["status"] in {"QUEUED", "PROCESSING"}
print(httpx2.get(result["output"]).content[4:8], result["output"].rpartition("/v2/")[0])
print(httpx2.get("http://127.0.0.2:1/").status_code)
"""
    program = (sys.executable, "-c", LOCAL_CALLS_ONLY + CALL + code)
    done = Wrapped(server, folder, *program, MOCHI_URL=url)
    assert (done.status, done.output) == (0, f"b'ftyp' {here}\n403\n"), done.errors


def test_a_program_that_does_not_trust_the_certificate_is_told_of(
    server: Stack, folder: Path
) -> None:
    code = """
import httpx2, certifi, ssl
for _ in range(2):
    try:
        httpx2.get(url, verify=ssl.create_default_context(cafile=certifi.where()))
    except httpx2.ConnectError as error:
        print("CERTIFICATE_VERIFY_FAILED" in str(error))
"""
    done = Wrapped(server, folder, sys.executable, "-c", LOCAL_CALLS_ONLY + CALL + code)
    assert (done.status, done.output) == (0, "True\nTrue\n")
    assert done.errors.startswith("mochi-server wrap: 2 TLS handshakes failed. ")
    assert "SSL_CERT_FILE" in done.errors


def test_a_connection_that_outlives_the_command_is_closed_silently(
    server: Stack, folder: Path
) -> None:
    code = """
import socket, subprocess
proxy = os.environ["HTTPS_PROXY"].rpartition("/")[2].split(":")
connection = socket.create_connection(proxy)
connection.sendall(b"CONNECT api.segmind.com:443 HTTP/1.1\\r\\n\\r\\n")
assert connection.recv(100)
subprocess.Popen(
    ["cat"], stdin=connection, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
)
"""
    assert not python(server, folder, code)


def test_a_server_that_is_not_there_is_named(server: Stack, folder: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    call = ["curl", "-sS", "https://api.segmind.com/version"]
    done = Wrapped(server, folder, *call, MOCHI_URL=f"{url}/v1")
    assert done.status == 56
    assert f"no answer from {url}: " in done.errors
    assert "Is it running? `mochi-server up`" in done.errors


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("sh", "-c", "exit 3"), 3),
        (("sh", "-c", "kill -KILL $$"), 137),
        (("no-such-program",), 127),
        (("/etc/passwd",), 126),
    ],
)
def test_the_exit_status_is_the_commands(
    server: Stack, folder: Path, command: tuple[str, ...], status: int
) -> None:
    done = Wrapped(server, folder, *command)
    assert done.status == status
    assert ("cannot be run: " in done.errors) == (status in {126, 127})


@pytest.mark.parametrize("url", ["ftp://here", "http://", "http://here/mochi", "http://here:port"])
def test_a_url_that_is_none_of_a_server_is_refused(server: Stack, folder: Path, url: str) -> None:
    done = Wrapped(server, folder, "true", MOCHI_URL=url)
    assert done.status == 1
    assert f"not {url}.\n" in done.errors


TALKER = """
import signal, sys, time
got = []
def note(number, _frame):
    got.append(signal.Signals(number).name)
    print(*got, flush=True)
    if number == signal.SIGTERM:
        sys.exit(5)
for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(each, note)
print("ready", flush=True)
while True:
    time.sleep(60)
"""


def told(output: Path, name: str) -> bool:
    return name in output.read_text()


def test_signals_go_to_the_command_and_wrap_ends_with_it(server: Stack, tmp_path: Path) -> None:
    output, errors = tmp_path / "output", tmp_path / "errors"
    environ = server.environ | {"MOCHI_API_KEY": "any", "TMPDIR": str(tmp_path)}
    command = ["wrap", "--", sys.executable, "-c", TALKER]
    process = start_command(command, environ, output, errors)
    try:
        eventually(lambda: output.exists() and "ready" in output.read_text())
        (made,) = tmp_path.glob("mochi-server-wrap-*")
        assert made.stat().st_mode & 0o777 == 0o700
        for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            process.send_signal(each)
            eventually(partial(told, output, each.name))
        assert process.wait(30) == 5
    finally:
        process.kill()
    assert not made.exists()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


def test_a_typed_interrupt_reaches_the_command_once(
    server: Stack, tmp_path: Path, terminal: tuple[int, int]
) -> None:
    keyboard, line = terminal
    program = tmp_path / "program.py"
    program.write_text(TALKER.replace("== signal.SIGTERM", "== signal.SIGTERM or len(got) > 1"))
    script = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [COMMAND, "wrap", "--", sys.executable, str(program)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command],
        env=server.environ | {"MOCHI_API_KEY": "any"},
        stdin=line,
        stdout=line,
        stderr=line,
    )
    try:
        shown = read_until(keyboard, b"ready")
        os.write(keyboard, b"\x03")
        read_until(keyboard, b"^C")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.terminate()
        assert process.wait(30) == 5
        assert b"SIGINT SIGTERM" in shown + read_until(keyboard, b"SIGTERM")
    finally:
        process.kill()


def read_until(file: int, text: bytes) -> bytes:
    shown = b""
    while text not in shown:
        assert select.select([file], [], [], 60)[0], shown
        shown += os.read(file, 1000)
    return shown
