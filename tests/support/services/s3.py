"""An object store for tests: moto's S3 in threads of this process, behind a proxy that misbehaves.

moto checks neither signatures nor their expiry.
"""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from uuid import uuid4

import httpx2
from moto.server import ThreadedMotoServer

HANG_SECONDS = 30.0
UNCHECKED = (
    "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)
SECRET = "wJalrXUtnFEMIexample"

Fault = int | Literal["hang", "cut"] | None
"""A status to answer with; never an answer; half of what is sent, or received; or none."""


class ObjectStore:
    """One for many tests. Each takes a bucket of its own; `fault` is reset by the fixture."""

    def __init__(self) -> None:
        self._moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._moto.start()
        self.moto_port = self._moto.get_host_and_port()[1]
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._proxy.daemon_threads = True
        self._proxy.block_on_close = False
        self._thread = threading.Thread(target=self._proxy.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._proxy.server_port}"
        # Its own: to make one takes longer than all else of a test. The signature is not checked.
        self._http = httpx2.Client(headers={"authorization": UNCHECKED})
        self.released = threading.Event()
        self.one_at_a_time = threading.Lock()  # moto answers 500 if an object is replaced meanwhile
        self.heal()

    def heal(self) -> None:
        """Behave."""
        self.fault: Callable[[str, str], Fault] = lambda _verb, _path: None
        self.asked: list[str] = []
        self.headers_seen: set[str] = set()

    def fail(self, verb: str, *faults: Fault, then: Fault = None) -> None:
        """Misbehave on these requests, one after the other, and go on as `then`."""
        left = list(faults)

        def fault(asked: str, _path: str) -> Fault:
            if asked != verb:
                return None
            return left.pop(0) if left else then

        self.fault = fault

    def stop(self) -> None:
        """End all of its threads."""
        self.released.set()
        self._proxy.shutdown()
        self._thread.join()
        self._proxy.server_close()
        self._moto.stop()
        self._http.close()

    def environ(self) -> dict[str, str]:
        """The variables that lead here."""
        return {
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }

    def new_bucket(self) -> str:
        """The name of an empty bucket."""
        name = f"videos-{uuid4().hex[:12]}"
        self._http.put(self.direct(name)).raise_for_status()
        return name

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Put an object that another program wrote."""
        self._http.put(self.direct(f"{bucket}/{key}"), content=data).raise_for_status()

    def get(self, bucket: str, key: str) -> bytes:
        """An object, past the proxy."""
        return self._http.get(self.direct(f"{bucket}/{key}")).raise_for_status().content

    def keys(self, bucket: str) -> list[str]:
        """All that is in a bucket."""
        return re.findall("<Key>(.*?)</Key>", self._http.get(self.direct(bucket)).text)

    def direct(self, path: str) -> str:
        """A URL past the proxy."""
        return f"http://127.0.0.1:{self.moto_port}/{path}"


def _handler(store: ObjectStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Quietly."""

        def _answer(self) -> None:
            fault = store.fault(self.command, self.path)
            store.asked.append(self.command)
            store.headers_seen |= {name.lower() for name in self.headers}
            length = int(self.headers.get("content-length", 0))
            if fault == "cut" and length:
                self.rfile.read(length // 2)
                self.close_connection = True
                return
            body = self.rfile.read(length)
            if fault == "hang":
                store.released.wait(HANG_SECONDS)
                self.close_connection = True
            elif isinstance(fault, int):
                self._send(fault, [], b"<Error><Code>Injected</Code></Error>")
            else:
                self._forward(body, is_cut=fault == "cut")

        def _forward(self, body: bytes, *, is_cut: bool) -> None:
            moto = http.client.HTTPConnection("127.0.0.1", store.moto_port, timeout=HANG_SECONDS)
            with store.one_at_a_time:
                moto.request(self.command, self.path, body, dict(self.headers))
                answer = moto.getresponse()
                content = answer.read()
            headers = [
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}
            ]
            length = answer.getheader("content-length") if self.command == "HEAD" else None
            moto.close()
            self._send(answer.status, headers, content, length=length, is_cut=is_cut)

        def _send(
            self,
            status: int,
            headers: list[tuple[str, str]],
            content: bytes,
            *,
            length: str | None = None,
            is_cut: bool = False,
        ) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("content-length", length or str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if is_cut else content)
            self.close_connection = self.close_connection or is_cut

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

    return Handler
