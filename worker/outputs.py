"""Finished videos on local disk. A file appears whole or not at all; nobody else may read it."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from worker.errors import StorageError

_NAME = re.compile(r"(?P<request_id>[0-9a-f-]{36})-[0-9a-f]{12}\.mp4")
_REQUEST_ID = re.compile(r"[0-9a-f-]{36}")
_DRAFT_SUFFIX = ".part"


class LocalOutputs:
    """A folder that workers write to and gateways read from. Made on the first write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @staticmethod
    def name(request_id: str, run: str) -> str:
        """The name of a run's video. Runs never share one, so a late run cannot replace a file."""
        return f"{request_id}-{run}.mp4"

    def draft(self, name: str) -> Path:
        """Where to write a video before it is published.

        Raises:
            StorageError: the folder cannot be made, or the name is not one of ours.
        """
        path = self._inside(name)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"The folder for videos cannot be made: {error.strerror}") from error
        return path.with_name(name + _DRAFT_SUFFIX)

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
        path = self._inside(name)
        if path.is_symlink() or not path.is_file():
            raise StorageError("The video is gone")
        return path

    def remove(self, name: str) -> None:
        """Forget a video and its draft, if they are there. What the disk keeps is swept later."""
        path = self._inside(name)
        for file in (path, path.with_name(name + _DRAFT_SUFFIX)):
            with suppress(OSError):
                file.unlink()

    def sweep(self, is_kept: Callable[[str], bool], *, older_than: float) -> int:
        """Remove the files of requests that are not kept any more.

        Args:
            is_kept: says whether the record of a request id exists.
            older_than: seconds since its last change for which a file is left alone: it may be
                a draft in the making, or published by a run that is about to say so.

        Returns:
            How many files were removed.
        """
        removed = 0
        for path in self._folder.glob("*.mp4*"):
            match = _NAME.match(path.name)
            try:
                is_old = time.time() - path.stat().st_mtime > older_than
            except FileNotFoundError:
                continue  # published or swept meanwhile
            if match and is_old and not is_kept(match["request_id"]):
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def save_checkpoint(self, request_id: str, data: bytes) -> None:
        """Keep the state of a request, in place of the one before. Whole, but maybe not durable.

        Raises:
            StorageError: the disk refused, or the id is not one of ours; the one before is kept.
        """
        path = self._checkpoint(request_id)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Not one name for all: two runs may do this at once.
            descriptor, draft = tempfile.mkstemp(_DRAFT_SUFFIX, path.name, self._folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                Path(draft).rename(path)
            except OSError:
                Path(draft).unlink()
                raise
        except OSError as error:
            raise StorageError(f"The checkpoint cannot be kept: {error.strerror}") from error

    def load_checkpoint(self, request_id: str) -> bytes | None:
        """What was kept last, if anything.

        Raises:
            StorageError: it cannot be read, or the id is not one of ours.
        """
        try:
            return self._checkpoint(request_id).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"The checkpoint cannot be read: {error.strerror}") from error

    def remove_checkpoint(self, request_id: str) -> None:
        """Forget it, if it is there.

        Raises:
            StorageError: the id is not one of ours.
        """
        with suppress(OSError):
            self._checkpoint(request_id).unlink()

    def _checkpoint(self, request_id: str) -> Path:
        if not _REQUEST_ID.fullmatch(request_id):
            raise StorageError("The checkpoint is gone")
        return self._folder / f"{request_id}.checkpoint"

    def _inside(self, name: str) -> Path:
        # A request id comes from the broker, and with it the name.
        if not _NAME.fullmatch(name):
            raise StorageError("The video is gone")
        return self._folder / name


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
