"""Where finished videos and checkpoints are kept. Each appears whole or not at all.

`Outputs` is the protocol of such a store; `local.py` and `s3.py` implement it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

from worker.errors import StorageError

CHUNK_BYTES = 1 << 18
"""What is read of a video at a time."""

_REQUEST = r"(?P<request_id>[0-9a-f-]{36})"
_VIDEO = re.compile(_REQUEST + r"-[0-9a-f]{12}\.mp4")
_CHECKPOINT = re.compile(_REQUEST + r"\.checkpoint")
_OURS = re.compile(_REQUEST + r"(-[0-9a-f]{12}\.mp4|\.checkpoint)")
_DRAFT = re.compile(rf"{_OURS.pattern}(\.[0-9a-f]{{12}})?\.part")
_DRAFT_SUFFIX = ".part"


def video_name(request_id: str, run: str) -> str:
    """The name of a run's video. Runs never share one, so a late run cannot replace a video."""
    return f"{request_id}-{run}.mp4"


def checked_video(name: str) -> str:
    """The name itself. A request id comes from the broker, and with it the name.

    Raises:
        StorageError: it is not one of ours.
    """
    if not _VIDEO.fullmatch(name):
        raise StorageError("The video is gone")
    return name


def checkpoint_name(request_id: str) -> str:
    """The name of a request's checkpoint; all its runs share it.

    Raises:
        StorageError: the id is not one of ours.
    """
    name = f"{request_id}.checkpoint"
    if not _CHECKPOINT.fullmatch(name):
        raise StorageError("There is no such checkpoint")
    return name


def request_of(name: str, *, with_drafts: bool = False) -> str | None:
    """The id of the request that a video, a checkpoint or a draft belongs to; None: not ours."""
    match = _OURS.fullmatch(name) or (_DRAFT.fullmatch(name) if with_drafts else None)
    return match["request_id"] if match else None


def prefetch_first(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, the first of them read already: an error comes here, not in mid-answer."""
    return chain([next(chunks, b"")], chunks)


class Outputs(Protocol):
    """A store that workers write to and gateways read from."""

    def check(self) -> None:
        """Find out whether videos can be kept here, before minutes of work depend on it.

        Raises:
            OutputsUnusableError: not with these settings. The text has the remedy.
            StorageError: not now.
        """

    def draft(self, name: str) -> Path:
        """Where to write a video before it is published: a file on this machine.

        Raises:
            StorageError: the folder cannot be made, or the name is not one of ours.
        """

    def publish(self, name: str) -> int:
        """Give the draft its name in the store, durably and at once. The draft is gone then.

        Returns:
            Its size in bytes.

        Raises:
            StorageError: the store refused. What it may have taken all the same is swept.
        """

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes of a published video from `start` to before `stop`, by default all.

        Raises:
            StorageError: there is no such video, or the store does not answer. Only while the
                chunks are taken: it broke off in the middle.
        """

    def link(self, name: str, seconds: float) -> str | None:
        """A URL where the store itself serves the video for so long; None where it cannot.

        Raises:
            StorageError: it cannot be signed, or the name is not one of ours.
        """

    def remove(self, name: str) -> None:
        """Forget a video and its draft, if they are there. What stays is swept later.

        Raises:
            StorageError: the name is not one of ours.
        """

    def save_checkpoint(self, request_id: str, data: bytes) -> None:
        """Keep what an interrupted request could go on from, in place of what was kept before.

        Raises:
            StorageError: the store refused; what was kept before is still there.
        """

    def load_checkpoint(self, request_id: str) -> bytes | None:
        """What was kept last; None when there is nothing, or it cannot be read."""

    def remove_checkpoint(self, request_id: str) -> None:
        """Forget it, if it is there. What stays is swept later."""

    def sweep(self, is_kept: Callable[[str], bool], *, older_than: float) -> int:
        """Remove what belongs to requests that are not kept any more.

        Args:
            is_kept: says whether the record of a request id exists.
            older_than: seconds since its last change for which a file is left alone: it may be a
                draft in the making, or published by a run that is about to say so. Clocks that
                differ do no harm, as such a request is kept.

        Returns:
            How many files were removed.
        """
