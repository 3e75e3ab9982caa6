"""The manifest of a weights folder, and the check of the folder against it."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

MAX_WORKERS = 8
"""Files that are read or downloaded at the same time; the default of huggingface_hub."""
CHUNK_BYTES = 1 << 20
"""Of a file that is read or downloaded; progress moves in these steps."""

Advance = Callable[[int], None]
"""Receives how many bytes came; a negative number when some are discarded. For any thread."""
Progress = Callable[[str, int], Advance]
"""Begins to show a step, by name and size in bytes."""


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
    advance = progress(what, readable)
    with ThreadPoolExecutor(MAX_WORKERS) as pool:
        faults = pool.map(lambda item: _fault(folder / item[0], item[1], advance), files.items())
        return {name: fault for name, fault in zip(files, faults, strict=True) if fault}


def size(path: Path) -> int | None:
    """In bytes; None where there is no regular file, or none that can be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _fault(path: Path, file: WeightsFile, advance: Advance) -> str:
    found = size(path)
    if found is None:
        return "missing"
    if found != file.size:
        return f"{found:,} bytes instead of {file.size:,}"
    return "" if _checksum(path, file, advance) == file.checksum else "changed"


def _checksum(path: Path, file: WeightsFile, advance: Advance) -> str:
    kind = file.checksum.partition(":")[0]
    if kind == "sha256":
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return f"{kind}:{digest.hexdigest()}"
