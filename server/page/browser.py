"""Opens the page in the user's browser, signed in."""

from __future__ import annotations

import os
import secrets
import sys
import time
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

OPEN_SECONDS = 30.0
"""How long a browser may take to start."""


def open_page(link: str) -> bool:
    """Open `link`, which has a key, in the background. False where there is no browser.

    Every user of the machine can read the command line of a browser. So the browser gets the
    address of a redirect, which works once.
    """
    if not _has_browser():
        return False
    redirect = _Redirect(link)
    Thread(target=redirect.run, daemon=True).start()
    Thread(target=webbrowser.open, args=(redirect.url,), daemon=True).start()
    return True


def _has_browser() -> bool:
    """Without a desktop, `webbrowser` would open a browser within the terminal."""
    has_desktop = any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))
    return has_desktop or sys.platform in {"darwin", "win32"}


class _Redirect(ThreadingHTTPServer):
    daemon_threads = True
    timeout = 1.0

    def __init__(self, link: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.path = f"/{secrets.token_urlsafe()}"
        self.url = f"http://127.0.0.1:{self.server_port}{self.path}"
        self._links = [link]

    def run(self) -> None:
        deadline = time.monotonic() + OPEN_SECONDS
        with self:
            while self._links and time.monotonic() < deadline:
                self.handle_request()

    def take_link(self, path: str) -> str | None:
        """The link, for the first caller of the right path."""
        if not secrets.compare_digest(path.encode(), self.path.encode()):
            return None
        try:
            return self._links.pop()
        except IndexError:
            return None


class _Handler(BaseHTTPRequestHandler):
    server: _Redirect
    timeout = OPEN_SECONDS

    def do_GET(self) -> None:
        link = self.server.take_link(self.path)
        if link is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("location", link)
        self.send_header("cache-control", "no-store")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Nothing: the terminal is the user's."""
