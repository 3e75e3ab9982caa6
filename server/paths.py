"""URL paths, and host names, that more than one layer knows."""

from __future__ import annotations

FRONT_PAGE = "/"
PAGE_FOLDER = "/page/"
DOCS_PAGE = "/docs"
DOCS_FOLDER = "/docs/"
VIDEOS_PATH = "/v1/videos"
"""Answers under this path have the shape that other self-hosted video servers use."""
VIDEO_FOLDER = "/v2/videos/"
VIDEO_PATH = VIDEO_FOLDER + "{signature}/{request_id}.mp4"
"""Programs name a download after the end of its URL, so the signature is not there."""
OLD_VIDEO_PATH = VIDEO_FOLDER + "{request_id}.mp4"
"""With the signature in the query: links that older gateways made live as long as their request."""
SIGNATURE = "signature"
EVENTS_PATH = "/v2/requests/{request_id}/events"
HOSTED_NAMES = ".segmind.com"
"""End of the names of the hosted API, which its clients call over HTTPS only."""
PROBES = frozenset({"/healthz", "/readyz"})
MCP = "/mcp"
METRICS = "/metrics"
"""Public only with MOCHI_METRICS_PUBLIC."""
PUBLIC = PROBES | {FRONT_PAGE, DOCS_PAGE, "/openapi.json", "/version"}
"""Paths that need no key."""
PUBLIC_FOLDERS = (DOCS_FOLDER, PAGE_FOLDER, VIDEO_FOLDER)
"""Folders that need no key: the files of the pages, and videos, whose links are signed."""


def needs_no_key(path: str, query: bytes) -> bool:
    """Whether a request is authorised otherwise, or not at all."""
    if path in PUBLIC or path.startswith(PUBLIC_FOLDERS):
        return True
    return bool(query) and path.endswith("/events") and f"{SIGNATURE}=".encode() in query
