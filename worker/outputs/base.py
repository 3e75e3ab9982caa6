"""Output stores for videos, their stills and checkpoints, which appear whole or not at all.

`Outputs` is the protocol; `local.py` and `s3.py` implement it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

from models.request.params import FORMATS, STILLS, Format, Still, VideoType
from worker.errors import StorageError, VideoGoneError

CHUNK_BYTES = 1 << 18
"""Read of a video at a time."""

_REQUEST = r"(?P<request_id>[0-9a-f-]{36})"
_ENDING = rf"(?P<ending>\.({'|'.join(FORMATS)})|-({'|'.join(STILLS)})\.jpg)"
_FILE = re.compile(rf"{_REQUEST}-[0-9a-f]{{12}}{_ENDING}")
_CHECKPOINT = re.compile(_REQUEST + r"\.checkpoint")
_OURS = re.compile(rf"{_REQUEST}(-[0-9a-f]{{12}}{_ENDING}|\.checkpoint)")
_DRAFT = re.compile(rf"{_OURS.pattern}(\.[0-9a-f]{{12}})?\.part")
DRAFT_SUFFIX = ".part"
MARKER = "store-id"
"""File with a random id, by which gateways and workers check that they share a store."""
MARK_SECONDS = 30.0
"""After which they read it again: a share may be unmounted, or a rule of a bucket delete it."""


def video_name(request_id: str, run: str, kind: Format = "mp4") -> str:
    """The name of a run's video. Runs never share one, so a late run cannot replace a video."""
    return f"{request_id}-{run}.{kind}"


def still_name(video: str, still: Still) -> str:
    """The name of a still beside a video."""
    return f"{video.rpartition('.')[0]}-{still}.jpg"


def ending_of(name: str) -> str:
    """What follows the run in a file's name, as in `.mp4` or `-poster.jpg`."""
    match = _FILE.fullmatch(name)
    return match["ending"] if match else ".mp4"


def media_type(name: str) -> VideoType:
    """Of a video, by its name: an older worker makes MP4 whatever was asked for."""
    return next((FORMATS[each] for each in FORMATS if name.endswith(f".{each}")), FORMATS["mp4"])


def checked_name(name: str) -> str:
    """The same name, which comes from the broker and is not trusted.

    Raises:
        StorageError: it is no video's or still's name.
    """
    if not _FILE.fullmatch(name):
        raise VideoGoneError
    return name


def names_beside(video: str) -> list[str]:
    """The name of a video, and those that its stills would have.

    Raises:
        StorageError: it is no video's name.
    """
    return [checked_name(video), *(still_name(video, still) for still in STILLS)]


def checkpoint_name(request_id: str) -> str:
    """The name of a request's checkpoint; all its runs share it.

    Raises:
        StorageError: the id is no request's.
    """
    name = f"{request_id}.checkpoint"
    if not _CHECKPOINT.fullmatch(name):
        raise StorageError("There is no such checkpoint")
    return name


def request_of(name: str, *, with_drafts: bool = False) -> str | None:
    """The id of the request that a file belongs to; None for files of others."""
    match = _OURS.fullmatch(name) or (_DRAFT.fullmatch(name) if with_drafts else None)
    return match["request_id"] if match else None


def prefetch_first(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, with the first one read now: its error comes before the response begins."""
    return chain([next(chunks, b"")], chunks)


class Outputs(Protocol):
    """Workers write, gateways read."""

    @property
    def link_origin(self) -> str:
        """Scheme and host of every `link`; empty if there are none. Known from the settings."""

    def check(self) -> None:
        """Check that videos can be stored, before minutes of work depend on it; mark the store.

        Raises:
            OutputsUnusableError: not with these settings; the message has the remedy.
            StorageError: not now.
        """

    def check_space(self) -> None:
        """Raise DiskFullError if the disk of drafts has too little room for a run."""

    def mark(self) -> str:
        """The store's id, which the first process to ask writes; empty if it cannot.

        Raises:
            StorageError: the store does not answer.
        """

    def draft(self, name: str) -> Path:
        """A local file to write a video to before it is published.

        Raises:
            StorageError: the folder cannot be made, or it is no video's name.
        """

    def publish(self, name: str) -> int:
        """Store the draft under its name, durably and atomically, and remove the draft.

        Returns:
            Size of the video in bytes.

        Raises:
            StorageError: the store refused. A video that it stored all the same is swept.
        """

    def save_still(self, name: str, data: bytes) -> None:
        """Store a still, durably and atomically. Its video is published after it.

        Raises:
            StorageError: the store refused, or it is no still's name.
        """

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes of a published video or still from `start` to before `stop`, by default all.

        Raises:
            StorageError: the file does not exist, or the store does not answer. During the
                iteration: the store broke off.
        """

    def link(self, name: str, seconds: float) -> str | None:
        """A URL at which the store itself serves the file for `seconds`; None if it cannot.

        Raises:
            StorageError: the URL cannot be signed, or it is no file's name.
        """

    def remove(self, name: str) -> None:
        """Remove a video, its draft and its stills, if they exist. What stays is swept later.

        Raises:
            StorageError: it is no video's name.
        """

    def save_checkpoint(self, request_id: str, data: bytes) -> None:
        """Store the checkpoint of a request, in place of the one before.

        Raises:
            StorageError: the store refused; the one before is still there.
        """

    def load_checkpoint(self, request_id: str) -> bytes | None:
        """The latest checkpoint; None when there is none, or it cannot be read."""

    def remove_checkpoint(self, request_id: str) -> None:
        """If it exists. A file that stays is swept later."""

    def sweep(
        self,
        is_kept: Callable[[str], bool],
        *,
        older_than: float,
        is_turn: Callable[[], bool] = lambda: True,
    ) -> int:
        """Remove the files of requests whose record has expired.

        Args:
            is_kept: whether the record of a request id exists.
            older_than: seconds since its last change during which a file stays: it may be a draft
                in progress, or a video whose record is not completed yet. Clock skew does no harm,
                as the record of such a request exists.
            is_turn: whether this process is the one to list files that it shares with others.

        Returns:
            Number of removed files.
        """
