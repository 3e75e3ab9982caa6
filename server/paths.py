"""URL paths, and host names, that more than one layer knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import urlencode

FRONT_PAGE = "/"
PAGE_FOLDER = "/page/"
DOCS_PAGE = "/docs"
DOCS_FOLDER = "/docs/"
VIDEOS_PATH = "/v1/videos"
"""Answers under this path have the shape that other self-hosted video servers use."""
OPENAI_LACKING = ("/v1/chat/", "/v1/images/")
"""What clients of the OpenAI API may ask for, and is not here."""
OPENAI_FOLDERS = (f"{VIDEOS_PATH}/", *OPENAI_LACKING)
"""Errors below these have the shape of the OpenAI API."""
VIDEO_FOLDER = "/v2/videos/"
VIDEO_PATH = VIDEO_FOLDER + "{request_id}.mp4"
WEBM_PATH = VIDEO_FOLDER + "{request_id}.webm"
GIF_PATH = VIDEO_FOLDER + "{request_id}.gif"
STILL_PATH = VIDEO_FOLDER + "{request_id}-{still}.jpg"
FILE_LINK = VIDEO_FOLDER + "{signature}/{name}"
"""Programs name a download after the end of its URL, so the signature is not there."""
SIGNATURE = "signature"
EVENTS_PATH = "/v2/requests/{request_id}/events"
HOSTED_NAMES = ".segmind.com"
"""End of the names of the hosted API, which its clients call over HTTPS only."""
PROBES = frozenset({"/healthz", "/readyz"})
MCP = "/mcp"
METRICS = "/metrics"
"""Public only with MOCHI_METRICS_PUBLIC."""
VERSION_PATH = "/version"
"""Public unless MOCHI_DOCS=false: it names the host of the store of videos."""
PUBLIC = PROBES | {FRONT_PAGE, DOCS_PAGE, "/openapi.json"}
"""Paths that need no key."""
PUBLIC_FOLDERS = (DOCS_FOLDER, PAGE_FOLDER, VIDEO_FOLDER)
"""Folders that need no key: the files of the pages, and videos, whose links are signed."""


_VIDEO_LINK = re.compile(VIDEO_FOLDER + r"(?P<signature>[^/]*)/(?P<name>.+)", re.DOTALL)
_EVENTS = re.compile(r"/v2/requests/[^/]+/events")


def normalise(scope: MutableMapping[str, Any]) -> None:
    """Give the path of an ASGI scope its one spelling, before anything logs or traces it.

    The signature of a link to a video moves into the query, which no log has. A slash at the end
    goes: some clients put one behind each path, and a redirect would lose their body.
    """
    path = scope["path"]
    if path.startswith(VIDEO_FOLDER) and (link := _VIDEO_LINK.fullmatch(path)):
        scope["path"] = VIDEO_FOLDER + link["name"]
        signature = urlencode({SIGNATURE: link["signature"]}).encode()
        scope["query_string"] = b"&".join(filter(None, (scope["query_string"], signature)))
    elif path.endswith("/") and path != FRONT_PAGE:
        scope["path"] = path[:-1]


def is_public(path: str) -> bool:
    """Whether a path needs no key."""
    return path in PUBLIC or path.startswith(PUBLIC_FOLDERS)


def is_signed(scope: Mapping[str, Any]) -> bool:
    """Whether a request shows a signature, right or wrong, that may stand for the key."""
    return (
        bool(scope["query_string"])
        and scope["method"] in {"GET", "HEAD"}
        and bool(_EVENTS.fullmatch(scope["path"]))
        and SIGNATURE.encode() + b"=" in scope["query_string"]
    )
