"""Which hosts a program under `mochi-server wrap` reaches, and what it is told of the others."""

from __future__ import annotations

import sys
from pathlib import Path

from models.version import this_build
from tests.integration.clients.wrap.wrapped import CALL, LOCAL_CALLS_ONLY, Wrapped, python
from tests.support.services.brokers import free_port
from tests.support.stack import Stack
from tests.support.wire import another_gateway


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
