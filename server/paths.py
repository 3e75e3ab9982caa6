"""URL paths, and host names, that more than one layer knows."""

from __future__ import annotations

FRONT_PAGE = "/"
PAGE_FOLDER = "/page/"
DOCS_PAGE = "/docs"
DOCS_FOLDER = "/docs/"
VIDEOS_PATH = "/v1/videos"
"""Answers under this path have the shape that other self-hosted video servers use."""
VIDEO_FOLDER = "/v2/videos/"
VIDEO_PATH = VIDEO_FOLDER + "{request_id}.mp4"
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
