"""Makes one request to a server in every way that its clients do, and records the answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2

from models.request.params import MODEL
from server.cli.client import failure_text, http_client
from server.errors import ClientError

POLL_SECONDS = 1.0
"""As the SDK's."""
PATIENCE_SECONDS = 1800.0
"""For the end of a request."""
BLOCKING_SECONDS = 620.0
RUNNING = frozenset({"QUEUED", "PROCESSING"})
SERVER_ERROR = 500


class Side(NamedTuple):
    """One of the servers. `key_hint`: if it refuses the key; `remedy`: if it does not answer."""

    name: str
    url: str
    api_key: str
    key_hint: str
    remedy: str


@dataclass(frozen=True)
class Answer:
    """What came for one call.

    Attributes:
        body: JSON, or None.
        video: facts of the file, if it is one and can be looked at.
    """

    status: int
    headers: Mapping[str, str]
    seconds: float
    size: int
    body: Any
    video: Mapping[str, str]

    @classmethod
    def of(cls, response: httpx2.Response, seconds: float) -> Answer:
        headers, content = dict(response.headers), response.content
        answer = cls(response.status_code, headers, seconds, len(content), None, {})
        if answer.is_video:
            return replace(answer, video=facts(content))
        with suppress(ValueError):
            return replace(answer, body=response.json())
        return answer

    @property
    def is_video(self) -> bool:
        return self.headers.get("content-type", "").startswith("video/")

    def field(self, name: str) -> Any:  # noqa: ANN401 (JSON)
        return self.body.get(name) if isinstance(self.body, dict) else None

    @property
    def is_running(self) -> bool:
        """Whether the request may still end; a server that fails now may answer again."""
        return self.status >= SERVER_ERROR or self.field("status") in RUNNING


def check_key(side: Side) -> None:
    """Make the cheapest call.

    Raises:
        ClientError: the server does not answer, or refuses the key.
    """
    with http_client(side.url, {"x-api-key": side.api_key}) as http:
        _Recorder(http, side).check_key()


def record(side: Side, params: Mapping[str, Any], *, blocking: bool) -> _Answers:
    """The answers of a server by the names of the calls.

    Args:
        side: its URL may end with `/v1`; its key is sent to it alone.
        params: the body, valid or not.
        blocking: make the blocking call, too.

    Raises:
        ClientError: the server does not answer, or refuses the key.
    """
    with http_client(side.url, {"x-api-key": side.api_key}) as http:
        recorder = _Recorder(http, side)
        recorder.submit(params)
        if blocking:
            recorder.ask("blocking", "POST", f"/v1/{MODEL}", json=params, timeout=BLOCKING_SECONDS)
        return recorder.answers


_Answers = dict[str, Answer]


class _Recorder:
    def __init__(self, http: httpx2.Client, side: Side) -> None:
        self._http = http
        self._side = side
        self._url = side.url.rstrip("/").removesuffix("/v1")
        self.answers: _Answers = {}

    def check_key(self) -> None:
        credit = self.ask("credits", "GET", "/v1/get-user-credits")
        if credit.status == HTTPStatus.UNAUTHORIZED:
            error = str(credit.field("error") or "no message").removesuffix(".")
            refusal = f"The {self._side.name} refused its key (401): {error}."
            raise ClientError(f"{refusal} {self._side.key_hint}".rstrip())

    def submit(self, params: Mapping[str, Any]) -> None:
        self.check_key()
        began = time.monotonic()
        submitted = self.ask("submit", "POST", f"/v2/{MODEL}", json=params)
        if request_id := submitted.field("request_id"):
            self._follow(quote(str(request_id), safe=""), began + PATIENCE_SECONDS)

    def _follow(self, request_id: str, deadline: float) -> None:
        """Not by the links in the response: behind a proxy they can lead to another host."""
        request = f"/v2/requests/{request_id}"
        status = self.ask("last status", "GET", f"{request}/status")
        if status.is_running:
            self.answers["status"] = status
            result = self.ask("result", "GET", request)
            if result.is_running:
                self.answers["early result"] = result
        while status.is_running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            status = self.ask("last status", "GET", f"{request}/status")
        result = self.ask("result", "GET", request)
        self.ask("v1 result", "GET", f"/v1/requests/{request_id}")
        link = result.field("output")
        if isinstance(link, str) and link.startswith(("http://", "https://")):
            with http_client(link) as stranger:  # without the key
                self.answers["video"] = self._call(stranger, "GET", link)

    def ask(self, name: str, verb: str, path: str, **options: Any) -> Answer:  # noqa: ANN401
        self.answers[name] = answer = self._call(self._http, verb, self._url + path, **options)
        return answer

    def _call(self, http: httpx2.Client, verb: str, url: str, **options: Any) -> Answer:  # noqa: ANN401
        began = time.monotonic()
        try:
            response = http.request(verb, url, **options)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            why = failure_text(url, error, self._side.remedy)
            raise ClientError(f"The {self._side.name} does not answer. {why}") from None
        return Answer.of(response, time.monotonic() - began)


def facts(content: bytes) -> dict[str, str]:
    """What ffmpeg finds in an MP4; nothing where it is not installed."""
    try:
        import imageio_ffmpeg  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError:
        return {}
    with TemporaryDirectory() as folder:
        file = Path(folder, "video.mp4")
        file.write_bytes(content)
        try:
            frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(file))
            reader = imageio_ffmpeg.read_frames(str(file))
            found = next(reader)
            reader.close()
        except (OSError, RuntimeError):
            return {"file": "cannot be decoded"}
    return {
        "frames": str(frames),
        "frames a second": f"{found['fps']:g}",
        "duration": f"{seconds:.2f} s",
        "size": "{}×{}".format(*found["size"]),  # noqa: RUF001 (as in the documents)
        "codec": f"{found['codec']}, {found['pix_fmt']}",
        "index": "first" if content.find(b"moov") < content.find(b"mdat") else "last",
    }
