"""Output store in a bucket of S3 or a compatible service (MinIO, R2, …).

The library reads credentials, region and endpoint from the usual AWS variables.

Calls block and release the GIL. Those that write or list take at most the store's
`patience_seconds`, with retries: refused or broken connections, silence, 5xx and 429 are retried
with back-off.

A lifecycle rule of the bucket that expires objects after a day is a useful addition: it removes
files that stay when no worker is alive to sweep.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import S3Store
from pydantic import HttpUrl, TypeAdapter, ValidationError

from models.request.params import STILL_TYPE
from worker.errors import OutputsUnusableError, StorageError, VideoGoneError
from worker.outputs.base import (
    CHUNK_BYTES,
    MARKER,
    checked_name,
    checkpoint_name,
    media_type,
    names_beside,
    prefetch_first,
    request_of,
)
from worker.outputs.local import LocalOutputs

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import S3Config

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
"""The first one that is set wins."""
LONGEST_LINK_SECONDS = 7 * 24 * 3600
"""S3's limit for signed links."""
CONNECT_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0

_ERRORS = (BaseError, OSError, ValueError)
"""The library's: a missing object is a FileNotFoundError, a bad path a ValueError."""
_PERMANENT = re.compile(r"status code: 4(?!08|29)|incorrectly configured region")
_HTTP_URL = TypeAdapter(HttpUrl)

_log = structlog.get_logger()


def open_s3(url: str, *, drafts: LocalOutputs, patience_seconds: float) -> S3Outputs:
    """The store at `s3://BUCKET/PREFIX`; see `open_outputs`. No request is sent yet."""
    bucket, _, prefix = url.removeprefix("s3://").rstrip("/").partition("/")
    _unset_empty_variables()
    endpoint = _endpoint()
    config: S3Config = {"endpoint": endpoint} if endpoint else {}
    longest_pause = min(LONGEST_PAUSE_SECONDS, patience_seconds / 10)
    try:
        store = S3Store(
            bucket,
            prefix=prefix or None,
            config=config,
            client_options={
                # Only if asked for: a redirect could send the credentials without TLS.
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, patience_seconds / 4)),
                # Limits silence, not duration: a slow client may read a video for long. It also
                # limits an upload, which is silent until the answer.
                "read_timeout": timedelta(seconds=patience_seconds * 0.3),
                "timeout": timedelta(hours=1),
            },
            # The last retry begins after at most half the patience and a pause.
            retry_config={
                "max_retries": 100,
                "retry_timeout": timedelta(seconds=patience_seconds * 0.5),
                "backoff": {
                    # The library panics unless the first is shorter than the longest.
                    "init_backoff": timedelta(seconds=min(FIRST_PAUSE_SECONDS, longest_pause / 4)),
                    "max_backoff": timedelta(seconds=longest_pause),
                },
            },
        )
        origin = _link_origin(bucket, config)
    except _ERRORS as error:
        raise OutputsUnusableError(
            f"MOCHI_OUTPUTS: {url} cannot be used: {_summary(error)}. Check the AWS_ variables."
        ) from None
    return S3Outputs(store, drafts, url, origin)


@dataclass(frozen=True)
class S3Outputs:
    """A bucket, or its part below a prefix. Make it after any fork."""

    store: S3Store
    drafts: LocalOutputs
    url: str
    link_origin: str

    def check(self) -> None:
        """Try every operation once: write, read, list, delete."""
        self.drafts.check_folder()
        probe = checkpoint_name(str(uuid4()))  # a new id: the sweeper removes it if it stays
        try:
            obstore.put(self.store, probe, b"probe", use_multipart=False)
            obstore.get(self.store, probe).bytes()
            next(iter(obstore.list(self.store, chunk_size=1)), None)
            obstore.delete(self.store, [probe])
        except _ERRORS as error:
            said = _summary(error)
            if isinstance(error, FileNotFoundError):
                raise OutputsUnusableError(
                    f"MOCHI_OUTPUTS: there is no bucket for {self.url}. Make it, or correct "
                    f"MOCHI_OUTPUTS, AWS_REGION or AWS_ENDPOINT_URL. The store says: {said}"
                ) from None
            if _PERMANENT.search(said):
                raise OutputsUnusableError(
                    f"MOCHI_OUTPUTS: {self.url} cannot be used. Check AWS_ACCESS_KEY_ID, "
                    "AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL, and that the key may "
                    "s3:PutObject, s3:GetObject and s3:DeleteObject below the prefix and "
                    f"s3:ListBucket on the bucket. The store says: {said}"
                ) from None
            raise StorageError(
                f"{self.url} does not answer; check AWS_ENDPOINT_URL. {said}"
            ) from error
        self.mark()

    def check_space(self) -> None:
        self.drafts.check_space()

    def mark(self) -> str:
        try:
            try:
                return self._read_mark()
            except FileNotFoundError:
                # Of processes that start together, one writes it; a gateway's key may not.
                with suppress(*_ERRORS):
                    obstore.put(self.store, MARKER, uuid4().hex.encode(), mode="create")
                return self._read_mark()
        except FileNotFoundError:
            return ""
        except _ERRORS as error:
            raise StorageError(f"The store's mark cannot be read: {_summary(error)}") from error

    def _read_mark(self) -> str:
        return obstore.get(self.store, MARKER).bytes().to_bytes().decode("ascii")

    def draft(self, name: str) -> Path:
        return self.drafts.draft(name)

    def publish(self, name: str) -> int:
        draft = self.draft(name)
        try:
            video = draft.read_bytes()
            with _store_errors("The video cannot be kept"):
                self._put(name, video, media_type(name))
        except OSError as error:
            raise StorageError(f"The video cannot be kept: {error.strerror}") from error
        finally:
            self.drafts.remove(name)
        return len(video)

    def save_still(self, name: str, data: bytes) -> None:
        with _store_errors("The picture cannot be kept"):
            self._put(checked_name(name), data, STILL_TYPE)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return prefetch_first(self._chunks(checked_name(name), start, stop))

    def link(self, name: str, seconds: float) -> str | None:
        """A presigned URL; temporary credentials may end it earlier."""
        expires = timedelta(seconds=min(round(seconds), LONGEST_LINK_SECONDS))
        with _store_errors("The link to the video cannot be signed"):
            return obstore.sign(self.store, "GET", checked_name(name), expires)

    def remove(self, name: str) -> None:
        self.drafts.remove(name)
        with suppress(StorageError), _store_errors("A video stays"):
            obstore.delete(self.store, names_beside(name))

    def save_checkpoint(self, request_id: str, data: bytes) -> None:
        name = checkpoint_name(request_id)
        with _store_errors("The checkpoint cannot be kept"):
            self._put(name, data, "application/octet-stream")

    def load_checkpoint(self, request_id: str) -> bytes | None:
        try:
            name = checkpoint_name(request_id)
            return obstore.get(self.store, name).bytes().to_bytes()
        except FileNotFoundError:
            return None
        except (*_ERRORS, StorageError) as error:
            _log.warning("storage.unread", request_id=request_id, reason=_summary(error))
            return None

    def remove_checkpoint(self, request_id: str) -> None:
        with suppress(StorageError), _store_errors("A checkpoint stays"):
            obstore.delete(self.store, [checkpoint_name(request_id)])

    def sweep(
        self,
        is_kept: Callable[[str], bool],
        *,
        older_than: float,
        is_turn: Callable[[], bool] = lambda: True,
    ) -> int:
        """Several workers may sweep at once: a second delete does nothing."""
        removed = self.drafts.sweep(is_kept, older_than=older_than)  # of this host alone
        if not is_turn():
            return removed
        with _store_errors("Expired videos stay"):
            # Not recursive: folders below the prefix belong to others.
            objects = obstore.list_with_delimiter(self.store)["objects"]
            before = time.time() - older_than
            old = [each["path"] for each in objects if each["last_modified"].timestamp() < before]
            gone = [name for name in old if (its := request_of(name)) and not is_kept(its)]
            if gone:
                obstore.delete(self.store, gone)
        return removed + len(gone)

    def _put(self, name: str, data: bytes, content_type: str) -> None:
        # One request is atomic; an aborted multipart upload leaves parts that no listing shows.
        attributes = {"Content-Type": content_type}
        obstore.put(self.store, name, data, attributes=attributes, use_multipart=False)

    def _chunks(self, name: str, start: int, stop: int | None) -> Iterator[bytes]:
        asked: GetOptions = {"range": {"offset": start} if stop is None else (start, stop)}
        with _store_errors("The video cannot be read"):
            try:
                found = obstore.get(self.store, name, options=asked)
            except FileNotFoundError:
                raise VideoGoneError from None
            yield from found.stream(CHUNK_BYTES)


@contextmanager
def _store_errors(what: str) -> Iterator[None]:
    """Log the library's error, and raise a StorageError in its place."""
    try:
        yield
    except _ERRORS as error:
        _log.warning("storage.failed", what=what, reason=_summary(error))
        raise StorageError(
            f"{what}: the object store refuses or does not answer. The server's log says more."
        ) from error


def _summary(error: Exception) -> str:
    """The error's first paragraph; the second is a debug dump."""
    return str(error).partition("\n\n")[0].replace("\n", " ")


def _unset_empty_variables() -> None:
    """Compose files set them. The library panics at some that are empty."""
    for variable in [name for name, value in os.environ.items() if not value]:
        if variable.startswith("AWS_"):
            del os.environ[variable]


def _link_origin(bucket: str, config: S3Config) -> str:
    """Scheme and host of links, found without the credentials, which may have to be fetched."""
    keys: S3Config = {"access_key_id": "any", "secret_access_key": "any"}
    store = S3Store(bucket, config={**config, **keys})
    parts = urlsplit(obstore.sign(store, "GET", MARKER, timedelta(seconds=1)))
    return f"{parts.scheme}://{parts.netloc}"


def _endpoint() -> str:
    """The address of a store other than Amazon's, or empty.

    Checked here, as the library panics at an invalid one during a call.
    """
    for variable in ENDPOINT_VARIABLES:
        if endpoint := os.environ.get(variable):
            try:
                _HTTP_URL.validate_python(endpoint)
            except ValidationError:
                raise OutputsUnusableError(
                    f"{variable}: got {endpoint!r}. It must be the address of the object store, "
                    "like https://minio.example:9000."
                ) from None
            return endpoint.rstrip("/")
    return ""
