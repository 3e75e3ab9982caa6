"""A fake Hugging Face hub, over real HTTP on loopback.

It answers what `huggingface_hub` asks: the two lists of a commit's files, what a file is (HEAD),
and the files, the large ones from another host, whole or in ranges. It counts, and it misbehaves
where a test sets it to.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.services.hub_files import LOADED, OTHERS

HUB_ID = "genmo/mochi-1-preview"
FIRST = "1" * 40
SECOND = "2" * 40

LARGE = (".safetensors", ".model", ".bin", ".pt", ".gif")


@dataclass
class Request:
    """A request to the hub."""

    path: str
    range: str
    authorization: str
    host: str


@dataclass
class FakeHub:
    """Its model, its faults, and the requests that it received."""

    port: int = 0
    main: str = FIRST
    commits: list[str] = field(default_factory=lambda: [FIRST, SECOND])
    files: dict[str, bytes] = field(default_factory=lambda: LOADED | OTHERS)
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    spoiled: set[str] = field(default_factory=set)
    """Files whose bytes are not those that the list describes."""
    refusal: tuple[int, dict[str, str]] | None = None
    """Status and headers of every answer."""
    refused_files: set[str] = field(default_factory=set)
    breaks_after: dict[str, list[int]] = field(default_factory=dict)
    """For each file: after how many bytes the next answers break off."""
    busy: dict[str, int] = field(default_factory=dict)
    """For each file: how many of the next answers are 503."""
    halts: set[str] = field(default_factory=set)
    """Files of which half is sent, and nothing more until the hub ends."""
    ignores_ranges: bool = False
    halted: threading.Event = field(default_factory=threading.Event)
    """Set when that has happened."""
    over: threading.Event = field(default_factory=threading.Event)
    requests: list[Request] = field(default_factory=list)
    """All but those of HEAD."""
    bytes_sent: dict[str, int] = field(default_factory=dict)
    """Of each file."""

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.port}"

    def ranges(self, name: str) -> list[str]:
        """The ranges that were asked of a file."""
        return [one.range for one in self.requests if one.path == f"/cdn/{name}"]

    def sent(self) -> set[str]:
        """The files that were sent, whole or in part."""
        return {
            one.path.removeprefix("/cdn/") for one in self.requests if one.path.startswith("/cdn/")
        }

    def size(self, name: str) -> int:
        return self.claimed_sizes.get(name, len(self.files[name]))

    def checksum(self, name: str) -> str:
        """As the hub has it: SHA-256 of a large file, git's blob id of a small one."""
        content = self.files[name]
        if name.endswith(LARGE):
            return hashlib.sha256(content).hexdigest()
        return blob_id(content)

    def listing(self, commit: str) -> dict[str, Any]:
        """The hub's answer on a commit."""
        siblings = [self._sibling(name, content) for name, content in self.files.items()]
        return {"id": HUB_ID, "sha": commit, "siblings": siblings}

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        size = self.size(name)
        sibling = {"rfilename": name, "size": size, "blobId": blob_id(content)}
        if name.endswith(LARGE):
            sibling["lfs"] = {"sha256": self.checksum(name), "size": size, "pointerSize": 100}
        return sibling

    def tree(self) -> list[dict[str, Any]]:
        """The same list in the shape of the hub's trees."""
        return [self._leaf(name, content) for name, content in self.files.items()]

    def _leaf(self, name: str, content: bytes) -> dict[str, Any]:
        size = self.size(name)
        leaf = {"type": "file", "path": name, "size": size, "oid": blob_id(content)}
        if name.endswith(LARGE):
            leaf["lfs"] = {"oid": self.checksum(name), "size": size, "pointerSize": 100}
            leaf["xetHash"] = self.checksum(name)
        return leaf


def blob_id(content: bytes) -> str:
    """Git's."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/cdn/"):
            name = path.removeprefix("/cdn/")
            self._answer(200, b"", self._identity(self.hub.main, name), self.hub.size(name))
        else:
            commit, _, name = path.removeprefix(f"/{HUB_ID}/resolve/").partition("/")
            self._resolve(commit, name)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        headers = self.headers
        self.hub.requests.append(
            Request(path, headers["range"] or "", headers["authorization"] or "", headers["host"])
        )
        if self.hub.refusal:
            status, extra = self.hub.refusal
            self._answer(status, b"no", extra)
        elif path.startswith(f"/api/models/{HUB_ID}/revision/"):
            self._list(path.rpartition("/")[2])
        elif path.startswith(f"/api/models/{HUB_ID}/tree/"):
            self._answer(200, json.dumps(self.hub.tree()).encode(), {})
        elif path.startswith(f"/{HUB_ID}/resolve/"):
            commit, _, name = path.removeprefix(f"/{HUB_ID}/resolve/").partition("/")
            self._resolve(commit, name)
        elif path.startswith("/cdn/"):
            self._send(path.removeprefix("/cdn/"))
        else:
            self._answer(404, b"no", {"X-Error-Code": "RepoNotFound"})

    def _list(self, revision: str) -> None:
        commit = self.hub.main if revision == "main" else revision
        assert parse_qs(urlsplit(self.path).query).get("blobs"), "sizes and checksums are wanted"
        if commit not in self.hub.commits:
            self._answer(404, b"no", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._answer(200, json.dumps(self.hub.listing(commit)).encode(), {})

    def _resolve(self, commit: str, name: str) -> None:
        if name not in self.hub.files or commit not in self.hub.commits:
            self._answer(404, b"no", {"X-Error-Code": "EntryNotFound"})
        elif name in self.hub.refused_files:
            self._answer(403, b"no", {})
        else:
            # As the hub: small files from another path, large ones from another host.
            host = f"http://localhost:{self.hub.port}" if name.endswith(LARGE) else ""
            where = {"Location": f"{host}/cdn/{name}"}
            self._answer(302, b"", where | self._identity(commit, name))

    def _identity(self, commit: str, name: str) -> dict[str, str]:
        linked = "X-Linked-" if name.endswith(LARGE) else ""
        identity = {"X-Repo-Commit": commit, f"{linked}ETag": f'"{self.hub.checksum(name)}"'}
        if linked:
            identity["X-Linked-Size"] = str(self.hub.size(name))
            # The hub offers large files by Xet, too, for which this has no server.
            identity["X-Xet-Hash"] = self.hub.checksum(name)
            token = f"{self.hub.url}/api/models/{HUB_ID}/xet-read-token/{commit}"
            identity["Link"] = f'<{token}>; rel="xet-auth"'
        return identity

    def _send(self, name: str) -> None:
        if self.hub.busy.get(name):
            self.hub.busy[name] -= 1
            self._answer(503, b"busy", {})
            return
        self.hub.bytes_sent.setdefault(name, 0)
        content = self.hub.files[name]
        if name in self.hub.spoiled:
            content = bytes(byte ^ 1 for byte in content)
        start = 0
        if self.headers["range"] and not self.hub.ignores_ranges:
            start = int(self.headers["range"].removeprefix("bytes=").removesuffix("-"))
        rest = content[start:]
        if self.headers["range"] and not self.hub.ignores_ranges:
            self.send_response(206)
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        breaks = self.hub.breaks_after.get(name)
        if breaks:
            self._write(name, rest[: breaks.pop(0)])
            self.close_connection = True
        elif name in self.hub.halts:
            self._write(name, rest[: len(rest) // 2])
            self.hub.halted.set()
            self.hub.over.wait(30)
            self.close_connection = True
        else:
            self._write(name, rest)

    def _write(self, name: str, content: bytes) -> None:
        self.wfile.write(content)
        self.hub.bytes_sent[name] += len(content)

    def _answer(
        self, status: int, body: bytes, extra: dict[str, str], size: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base's)
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, *_request: object) -> None:
        """A client that went away."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub for one test."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with _Server(("127.0.0.1", 0), handler) as server:
        hub.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            hub.over.set()
            server.shutdown()
            thread.join()


@contextmanager
def fake_hub_here(monkeypatch: pytest.MonkeyPatch, port: int = 0) -> Iterator[FakeHub]:
    """A hub for code in this process, as if HF_ENDPOINT had named it before the imports.

    With a port, one that nothing listens at.
    """
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with nullcontext(FakeHub(port=port)) if port else fake_hub() as hub:
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        constants = {"ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        flags = {
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for name, value in (constants | flags).items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        yield hub
