"""A video from a published one with the same frames at another fps, without a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from models.request.params import Still
from models.video.encoding import retime
from worker.outputs.base import DRAFT_SUFFIX, Outputs, still_name


def retime_published(
    outputs: Outputs, source: str, draft: Path, fps: float, *, comment: str, description: str
) -> None:
    """Write the draft of a video from the published MP4 `source`.

    Raises:
        StorageError: the source cannot be read.
        EncodingError: it is damaged, or the disk is full.
    """
    copy = draft.with_name(f"{draft.stem}.{uuid4().hex[:12]}{DRAFT_SUFFIX}")
    try:
        with copy.open("xb") as file:
            file.writelines(outputs.read(source))
        retime(copy, fps, draft, comment, description)
    finally:
        copy.unlink(missing_ok=True)


def published_stills(outputs: Outputs, source: str, stills: Iterable[Still]) -> dict[Still, bytes]:
    """The stills beside a published video, with their marks. Raises StorageError."""
    return {still: b"".join(outputs.read(still_name(source, still))) for still in stills}
