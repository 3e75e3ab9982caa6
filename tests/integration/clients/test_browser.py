"""A page of another origin in a real browser: it submits, follows the events, plays the video."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.support.stack import PATIENCE_SECONDS, Stack
from tests.support.visitor import chromium
from tests.support.wire import another_gateway

PAGE = b"<!doctype html><title>An app of another origin</title><video id=video muted></video>"
APP = """
async ([base, key]) => {
    const headers = { "x-api-key": key, "content-type": "application/json" };
    const body = JSON.stringify({ prompt: "a pond", frames: 7, steps: 10, odd: 1 });
    const submitted = await fetch(`${base}/v2/mochi-1`, { method: "POST", headers, body });
    const ignored = submitted.headers.get("x-ignored-parameters");
    const refused = await fetch(`${base}/v2/mochi-1`, { method: "POST", body: "{}" });
    const { status_url } = await submitted.json();
    const { events_url, response_url } = await (await fetch(status_url, { headers })).json();
    const names = [];
    const output = await new Promise((resolve) => {
        if (!events_url) resolve(null);
        const source = new EventSource(events_url);
        for (const name of ["status", "progress", "preview"])
            source.addEventListener(name, () => names.push(name));
        source.addEventListener("output", (event) => {
            source.close();
            resolve(JSON.parse(event.data).output);
        });
    }) ?? (await (await fetch(response_url, { headers })).json()).output;
    const video = document.getElementById("video");
    video.crossOrigin = "anonymous";
    video.src = output;
    await video.play();
    const canvas = document.createElement("canvas");
    const pen = canvas.getContext("2d");
    pen.drawImage(video, 0, 0);
    pen.getImageData(0, 0, 1, 1);  // throws where the video has no CORS headers
    const file = await (await fetch(output)).blob();
    return { ignored, refused: refused.status, error: (await refused.json()).error, names,
             width: video.videoWidth, type: file.type };
}
"""


class _App(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture
def app() -> Iterator[str]:
    """The origin of the page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _App)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def page() -> Iterator[Page]:
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        yield page


def test_a_page_of_another_origin_makes_a_video_as_the_servers_own_does(
    tmp_path: Path, app: str, page: Page
) -> None:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.05") as stack:
        base = stack.start_gateway()
        stack.start_worker()
        page.goto(app)
        seen = page.evaluate(APP, [base, stack.key()])
    assert seen["ignored"] == "odd"
    assert (seen["refused"], seen["width"], seen["type"]) == (401, 848, "video/mp4")
    assert "x-api-key" in seen["error"]
    assert seen["names"][0] == "status"


def test_a_page_that_is_not_allowed_reads_nothing(server: Stack, app: str, page: Page) -> None:
    other = another_gateway(server, cors_origins="https://app.example")
    page.goto(app)
    said = page.evaluate("url => fetch(url).catch((error) => error.name)", f"{other}/version")
    assert said == "TypeError"
