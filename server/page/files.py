"""The files of the page at `/`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from mimetypes import guess_type
from pathlib import Path


@dataclass(frozen=True)
class PageFile:
    """A file as it is served."""

    content: bytes
    media_type: str | None
    etag: str


def read_page_files() -> dict[str, PageFile]:
    """All of them by their paths. Read once, as an upgrade may replace them under the gateway."""
    folder = Path(__file__).parent / "assets"
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _read(path) for path in files}


def etag_of(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    return PageFile(content, guess_type(path.name)[0], etag_of(content))
