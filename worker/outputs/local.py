"""Output store in a folder, of this host or shared by all hosts."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

from models.settings import make_private_folder, sync
from worker.errors import DiskFullError, OutputsUnusableError, StorageError, VideoGoneError
from worker.outputs.base import (
    CHUNK_BYTES,
    DRAFT_SUFFIX,
    MARKER,
    checked_name,
    checkpoint_name,
    names_beside,
    prefetch_first,
    request_of,
)


class LocalOutputs:
    """A folder that only its user may read."""

    link_origin = ""

    def __init__(self, folder: Path, *, min_free_mib: int = 0) -> None:
        self._folder = folder
        self._min_free_mib = min_free_mib

    def check(self) -> None:
        self.check_folder()
        self.mark()

    def check_folder(self) -> None:
        """Raise OutputsUnusableError when nothing can be written to it."""
        try:
            self.make_folder()
        except StorageError as error:
            raise OutputsUnusableError(f"{error}. Choose another with MOCHI_DATA_DIR.") from None
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise OutputsUnusableError(
                f"{self._folder} cannot be written to. Choose another with MOCHI_DATA_DIR."
            )

    def check_space(self) -> None:
        try:
            free_mib = shutil.disk_usage(self._folder).free >> 20
        except OSError:
            return  # whatever uses the folder next raises a better error
        if free_mib < self._min_free_mib:
            raise DiskFullError(self._folder, free_mib, self._min_free_mib)

    def mark(self) -> str:
        with suppress(OSError, StorageError):
            self.make_folder()
            with (self._folder / MARKER).open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # of processes that start together, one writes it
                if os.fstat(file.fileno()).st_size == 0:  # new, or the disk was full
                    file.write(uuid4().hex)
        try:
            return (self._folder / MARKER).read_text("ascii")
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            raise StorageError(f"{self._folder / MARKER} cannot be read: {error}") from error

    def draft(self, name: str) -> Path:
        draft = self._folder / (checked_name(name) + DRAFT_SUFFIX)
        self.make_folder()
        return draft

    def publish(self, name: str) -> int:
        """Sync and rename the draft; after a StorageError no file of this name exists."""
        draft = self.draft(name)
        try:
            sync(draft)
            draft.rename(self._folder / name)
            sync(self._folder)
            return (self._folder / name).stat().st_size
        except OSError as error:
            self.remove(name)
            raise StorageError(f"The video cannot be kept: {error.strerror}") from error

    def save_still(self, name: str, data: bytes) -> None:
        self._write(checked_name(name), data, "The picture cannot be kept")

    def path(self, name: str) -> Path:
        """The file of a published video or still.

        Raises:
            StorageError: it does not exist, or it is no file's name.
        """
        path = self._folder / checked_name(name)
        if path.is_symlink() or not path.is_file():
            raise VideoGoneError
        return path

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return prefetch_first(_chunks(self.path(name), start, stop))

    def link(self, name: str, _seconds: float) -> str | None:
        checked_name(name)
        return None  # the gateway serves it

    def remove(self, name: str) -> None:
        for each in (*names_beside(name), name + DRAFT_SUFFIX):
            with suppress(OSError):
                (self._folder / each).unlink()

    def save_checkpoint(self, request_id: str, data: bytes) -> None:
        self._write(checkpoint_name(request_id), data, "The checkpoint cannot be kept")

    def _write(self, name: str, data: bytes, failure: str) -> None:
        """Replace a file by these bytes, once they are on disk."""
        path = self._folder / name
        self.make_folder()
        # A name of its own: a run that was taken for dead may be at the same.
        draft = path.with_name(f"{path.name}.{uuid4().hex[:12]}{DRAFT_SUFFIX}")
        try:
            with open(draft, "xb", opener=partial(os.open, mode=0o600)) as file:
                file.write(data)
            sync(draft)
            draft.replace(path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise StorageError(f"{failure}: {error.strerror}") from error

    def load_checkpoint(self, request_id: str) -> bytes | None:
        try:
            path = self._folder / checkpoint_name(request_id)
            return None if path.is_symlink() else path.read_bytes()
        except (OSError, StorageError):
            return None

    def remove_checkpoint(self, request_id: str) -> None:
        with suppress(OSError, StorageError):
            (self._folder / checkpoint_name(request_id)).unlink()

    def sweep(
        self,
        is_kept: Callable[[str], bool],
        *,
        older_than: float,
        is_turn: Callable[[], bool] = lambda: True,
    ) -> int:
        if not is_turn():
            return 0
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
        """Raises StorageError when it does not exist and cannot be made."""
        try:
            make_private_folder(self._folder)
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
