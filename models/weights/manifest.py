"""The manifest of a weights folder, and the check of the folder against it."""

from __future__ import annotations

import hashlib
import stat
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

MAX_WORKERS = 8
"""Files that are read or downloaded at the same time; the default of huggingface_hub."""
CHUNK_BYTES = 1 << 20


class WeightsFile(BaseModel):
    """One file of a commit."""

    model_config = ConfigDict(frozen=True)

    size: int = Field(ge=0, description="In bytes.")
    checksum: str = Field(
        pattern="^(sha256:[0-9a-f]{64}|git:[0-9a-f]{40})$",
        description="Of the content; of a small file the hub only has git's blob id.",
    )


class Manifest(BaseModel):
    """What a complete folder holds, and of which commit."""

    model_config = ConfigDict(frozen=True)

    hub_id: str
    commit: str
    files: dict[str, WeightsFile]


class Progress(Protocol):
    """Receives progress in bytes: often, from any thread, one call at a time."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `what`."""


class Tally:
    """Adds up the bytes of all threads and reports the sum."""

    def __init__(self, what: str, total: int, progress: Progress) -> None:
        self._what, self._done, self._total = what, 0, total
        self._progress = progress
        self._lock = threading.Lock()
        self(0)

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._total:
                self._progress(self._what, self._done, self._total)


def find_faults(
    folder: Path, files: Mapping[str, WeightsFile], what: str, progress: Progress
) -> dict[str, str]:
    """Read the files of a folder and compare sizes and checksums.

    Returns:
        For the name of each file that differs: `missing`, `changed`, or its wrong size.

    Raises:
        OSError: a file cannot be read.
    """
    readable = sum(file.size for name, file in files.items() if size(folder / name) == file.size)
    tally = Tally(what, readable, progress)
    with ThreadPoolExecutor(MAX_WORKERS) as pool:
        faults = pool.map(lambda item: _fault(folder / item[0], item[1], tally), files.items())
        return {name: fault for name, fault in zip(files, faults, strict=True) if fault}


def size(path: Path) -> int | None:
    """In bytes; None where there is no regular file, or none that can be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _fault(path: Path, file: WeightsFile, on_bytes: Callable[[int], None]) -> str:
    found = size(path)
    if found is None:
        return "missing"
    if found != file.size:
        return f"{found:,} bytes instead of {file.size:,}"
    return "" if _checksum(path, file, on_bytes) == file.checksum else "changed"


def _checksum(path: Path, file: WeightsFile, on_bytes: Callable[[int], None]) -> str:
    kind = file.checksum.partition(":")[0]
    if kind == "sha256":
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return f"{kind}:{digest.hexdigest()}"
