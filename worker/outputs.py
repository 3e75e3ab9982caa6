"""Where finished videos and checkpoints are kept. Each appears whole or not at all.

`Outputs` says what a store does; here is the one in a local folder, and `s3.py` has the other.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from worker.errors import OutputsUnusableError, StorageError

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


def begun(chunks: Iterator[bytes]) -> Iterator[bytes]:
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


class LocalOutputs:
    """A folder. Nobody else may read it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self) -> None:
        """Make the folder.

        Raises:
            OutputsUnusableError: it cannot be made, or not be written to.
        """
        try:
            self.make_folder()
        except StorageError as error:
            raise OutputsUnusableError(f"{error}. Choose another with MOCHI_DATA_DIR.") from None
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise OutputsUnusableError(
                f"{self._folder} cannot be written to. Choose another with MOCHI_DATA_DIR."
            )

    def draft(self, name: str) -> Path:
        """Where to write a video before it is published.

        Raises:
            StorageError: the folder cannot be made, or the name is not one of ours.
        """
        draft = self._folder / (checked_video(name) + _DRAFT_SUFFIX)
        self.make_folder()
        return draft

    def publish(self, name: str) -> int:
        """Make the draft durable and give it its name.

        Returns:
            Its size in bytes.

        Raises:
            StorageError: the disk refused; no file of this name exists then.
        """
        draft = self.draft(name)
        try:
            _sync(draft)
            draft.rename(self._folder / name)
            _sync(self._folder)
            return (self._folder / name).stat().st_size
        except OSError as error:
            self.remove(name)
            raise StorageError(f"The video cannot be kept: {error.strerror}") from error

    def path(self, name: str) -> Path:
        """The file of a published video.

        Raises:
            StorageError: there is none, or the name is not one of ours.
        """
        path = self._folder / checked_video(name)
        if path.is_symlink() or not path.is_file():
            raise StorageError("The video is gone")
        return path

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes of a video, in chunks.

        Raises:
            StorageError: there is none, or the disk does not give it.
        """
        return begun(_chunks(self.path(name), start, stop))

    def link(self, name: str, _seconds: float) -> str | None:
        """None: a gateway serves it."""
        checked_video(name)
        return None

    def remove(self, name: str) -> None:
        """Forget a video and its draft, if they are there. What the disk keeps is swept later."""
        path = self._folder / checked_video(name)
        for file in (path, path.with_name(name + _DRAFT_SUFFIX)):
            with suppress(OSError):
                file.unlink()

    def save_checkpoint(self, request_id: str, data: bytes) -> None:
        """Write it beside the old one, then put it in its place.

        Raises:
            StorageError: the disk refused; the old one is still there.
        """
        path = self._folder / checkpoint_name(request_id)
        self.make_folder()
        # A name of its own: a run that was taken for dead may be at the same.
        draft = path.with_name(f"{path.name}.{uuid4().hex[:12]}{_DRAFT_SUFFIX}")
        try:
            with open(draft, "xb", opener=_private) as file:
                file.write(data)
            _sync(draft)
            draft.replace(path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise StorageError(f"The checkpoint cannot be kept: {error.strerror}") from error

    def load_checkpoint(self, request_id: str) -> bytes | None:
        """What was kept last; None when there is nothing, or it cannot be read."""
        try:
            path = self._folder / checkpoint_name(request_id)
            return None if path.is_symlink() else path.read_bytes()
        except (OSError, StorageError):
            return None

    def remove_checkpoint(self, request_id: str) -> None:
        """Forget it, if it is there. What the disk keeps is swept later."""
        with suppress(OSError, StorageError):
            (self._folder / checkpoint_name(request_id)).unlink()

    def sweep(self, is_kept: Callable[[str], bool], *, older_than: float) -> int:
        """Remove the files of requests that are not kept any more; see `Outputs`."""
        removed = 0
        for path in self._folder.glob("*"):
            request_id = request_of(path.name, with_drafts=True)
            if request_id is None:
                continue
            try:
                is_old = time.time() - path.lstat().st_mtime > older_than
            except FileNotFoundError:
                continue  # published or swept meanwhile
            if is_old and not is_kept(request_id):
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def make_folder(self) -> None:
        """Where it is not there yet.

        Raises:
            StorageError: it cannot be made.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"The folder for videos cannot be made: {error.strerror}") from error


def _chunks(path: Path, start: int, stop: int | None) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            left = (path.stat().st_size if stop is None else stop) - start
            file.seek(start)
            while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise StorageError(f"The video cannot be read: {error.strerror}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
