"""The example for nginx, in front of a gateway and run by the real nginx."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from segmind import SegmindClient

from tests.support.services.brokers import free_port
from tests.support.stack import Stack, eventually, run_command
from tests.support.wire import another_gateway, assert_trailers_are_dropped

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
EXAMPLE = Path(__file__).parents[3] / "docker" / "nginx.conf"
MAIN = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""
PATH = "/api/mochi"

pytestmark = pytest.mark.skipif(not os.access(NGINX, os.X_OK), reason="nginx is not installed")


@pytest.fixture(scope="module")
def proxied(server: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of nginx with the example, but a port of its own and no TLS."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    url = f"http://127.0.0.1:{port}"
    whole = another_gateway(server, trusted_proxies="127.0.0.1")
    below = another_gateway(server, public_url=f"{url}{PATH}/")
    site = EXAMPLE.read_text()
    for given, ours in (
        ("127.0.0.1:8000", httpx2.URL(whole).netloc.decode()),
        ("443 ssl", f"127.0.0.1:{port}"),
        ("    location / {", f"    location {PATH}/ {{ proxy_pass {below}/; }}\n    location / {{"),
    ):
        assert site.count(given) == 1, given
        site = site.replace(given, ours)
    lines = [line for line in site.splitlines() if "ssl_certificate" not in line]
    (folder / "site.conf").write_text("\n".join(lines))
    (folder / "main.conf").write_text(MAIN.format(folder=folder))
    nginx = subprocess.Popen([NGINX, "-c", folder / "main.conf", "-e", folder / "error.log"])
    try:
        eventually(lambda: answers(url))
        yield url
    finally:
        nginx.terminate()
        assert nginx.wait(30) == 0


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz").is_success
    except httpx2.HTTPError:
        return False


@pytest.mark.parametrize("path", ["", PATH])
def test_the_sdk_works_and_links_lead_through_the_proxy(
    server: Stack, proxied: str, path: str
) -> None:
    client = SegmindClient(api_key=server.key(), base_url=f"{proxied}{path}/v1", timeout=60)
    result = client.run("mochi-1", prompt="a pond", frames=1, steps=10)
    assert result["output"].startswith(f"{proxied}{path}/v2/videos/")
    video = httpx2.get(result["output"])
    assert video.content[4:8] == b"ftyp"
    assert client.run_sync("mochi-1", prompt="a pond", frames=1, steps=10).content == video.content
    client._client.close()


def test_events_come_one_by_one(server: Stack, proxied: str) -> None:
    client = server.http()
    submitted = client.post("/v2/mochi-1", json={"prompt": "a pond", "frames": 1, "steps": 75})
    path = f"/v2/requests/{submitted.json()['request_id']}/events"
    with client.stream("GET", proxied + path) as response:
        first = next(response.iter_text())
    assert first.startswith("event: status")
    assert "COMPLETED" not in first


def test_trailers_sent_through_the_proxy_are_no_headers(server: Stack, proxied: str) -> None:
    assert_trailers_are_dropped(proxied, server.key())


def test_the_pages_below_a_path_find_their_files(proxied: str) -> None:
    for page in ("/", "/docs"):
        text = httpx2.get(f"{proxied}{PATH}{page}").raise_for_status().text
        links = [part.partition('"')[0] for part in text.replace("src=", "href=").split('href="')]
        files = [link for link in links[1:] if "." in link]
        assert files
        for file in files:
            assert httpx2.get(f"{proxied}{PATH}/{file}").is_success, file
    document = httpx2.get(f"{proxied}{PATH}/openapi.json").json()
    assert document["servers"] == [{"url": f"{proxied}{PATH}"}]


def test_generate_works_below_a_path(server: Stack, proxied: str, tmp_path: Path) -> None:
    file = tmp_path / "pond.mp4"
    done = run_command(
        ["generate", "a pond", "-o", str(file), "--frames", "1", "--steps", "10"],
        server.environ | {"MOCHI_URL": proxied + PATH, "MOCHI_API_KEY": server.key()},
    )
    assert done.returncode == 0, done.stderr
    assert file.read_bytes()[4:8] == b"ftyp"
