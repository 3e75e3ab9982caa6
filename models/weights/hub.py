"""Client for one model on the Hugging Face hub, by `huggingface_hub`: file list and download.

Import this module where it is needed: a gateway's installation has no `huggingface_hub`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, close_session, constants, snapshot_download
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from models.errors import WeightsError
from models.weights.manifest import CHUNK_BYTES, MAX_WORKERS, Advance, WeightsFile

LIST_SECONDS = 30.0

# Its warnings of retries would break the progress bar.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def endpoint() -> str:
    """The address of the hub; HF_ENDPOINT sets it."""
    return constants.ENDPOINT


def list_files(hub_id: str, revision: str) -> tuple[str, dict[str, WeightsFile]]:
    """Resolve a revision to a commit, and list all files of that commit by name.

    Raises:
        WeightsError: the hub cannot be reached, or refuses.
    """
    with _hub_errors(hub_id, revision):
        model = HfApi().model_info(
            hub_id, revision=revision, files_metadata=True, timeout=LIST_SECONDS
        )
        files = {
            file.rfilename: WeightsFile.model_validate(
                {
                    "size": file.size,
                    "checksum": f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}",
                }
            )
            for file in model.siblings or ()
        }
    return str(model.sha), files


def download(
    hub_id: str,
    commit: str,
    names: Collection[str],
    folder: Path,
    advance: Advance,
) -> None:
    """Download files into a folder, several at once. Checks their sizes, not their content.

    When a file fails, those that have begun come to their end. Complete files stay, parts do not.
    `folder/.cache` is scratch space.

    Args:
        hub_id: of the model.
        commit: of the model.
        names: of the files; none may be in the folder.
        folder: where the model goes.
        advance: receives the bytes as they are written.

    Raises:
        WeightsError: the hub cannot be reached, or refuses.
        OSError: the disk is full, or fails otherwise.
    """

    class Bar(tqdm):  # shows nothing
        def __init__(self, *, name: str = "", **_options: object) -> None:
            super().__init__(disable=True)  # type: ignore[no-untyped-call]  # tqdm has no types
            # There are three: for the bytes received, the bytes written, and the files.
            self._counts = name == "huggingface_hub.snapshot_download"

        def update(self, n: float | None = 1) -> None:
            if self._counts:
                advance(int(n or 0))

    # The download says nothing of an unreachable hub if the folder has other files: ask first.
    list_files(hub_id, commit)
    # With its own 10 MB, the bar of a slow download stands still for a minute.
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    with _hub_errors(hub_id, commit):
        snapshot_download(
            hub_id,
            revision=commit,
            allow_patterns=list(names),
            local_dir=folder,
            cache_dir=folder / ".cache",  # the user's own cache may hold damaged files
            max_workers=MAX_WORKERS,
            tqdm_class=Bar,
        )


@contextmanager
def _hub_errors(hub_id: str, revision: str) -> Iterator[None]:
    """Close the connections at the end, and turn errors of the hub into messages with a remedy."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, KeyError, TypeError) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
        text = _message(cause or error, hub_id, revision)
        if not text:
            raise
        raise WeightsError(text) from None
    finally:
        close_session()


def _message(error: BaseException, hub_id: str, revision: str) -> str:
    """For the user; empty for an error of the disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return ""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    text = next(text for kinds, text in _MESSAGES if isinstance(error, kinds))
    return (text or _REFUSALS.get(status, _REFUSALS[0])).format(
        hub=endpoint(),
        hub_id=hub_id,
        revision=revision,
        status=status,
        error=error or type(error).__name__,
    )


_ABSENT = (
    "{hub} has no model {hub_id}, or does not show it to you ({status}). Check MOCHI_WEIGHTS; if "
    "the model is private, set HF_TOKEN to a token that may read it."
)
_REFUSALS = {
    0: "{hub} answers {status} when asked for {hub_id}. Try again later.",
    401: _ABSENT,  # the answer for a model that does not exist, too
    403: "{hub} refuses access to {hub_id} (403). Set HF_TOKEN to a token that may read it, of an "
    "account that has accepted its terms at {hub}/{hub_id}.",
    404: _ABSENT,
}
"""By status; 0 for all others."""
_MESSAGES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (OfflineModeIsEnabled, "HF_HUB_OFFLINE forbids the download. Unset it to pull weights."),
    (HFValidationError, "MOCHI_WEIGHTS={hub_id} is not a hub id such as genmo/mochi-1-preview."),
    (UnicodeEncodeError, "HF_TOKEN contains a character that no token has. Copy it again."),
    (
        GatedRepoError,
        "{hub_id} is gated: accept its terms at {hub}/{hub_id}, and set HF_TOKEN to a token of "
        "that account.",
    ),
    (
        RevisionNotFoundError,
        "{hub_id} has no commit {revision}. Set MOCHI_REVISION to one of "
        "{hub}/{hub_id}/commits/main.",
    ),
    (HfHubHTTPError, ""),
    (
        (httpx2.HTTPError, httpx2.InvalidURL),
        "{hub} cannot be reached ({error}). Try again later; or check the network, HTTPS_PROXY and "
        "HF_ENDPOINT; or copy the folder of weights from another machine and set "
        "MOCHI_WEIGHTS=/path/to/folder (or --weights /path/to/folder).",
    ),
    (
        (FileMetadataError, ValueError, KeyError, TypeError),
        "{hub} does not answer as a hub does. Is HF_ENDPOINT right?",
    ),
    (
        OSError,
        "{hub} sent a file of {hub_id} with another size than it lists. "
        "Type again: mochi-server weights pull",
    ),
)
"""By the first kind that matches; empty for one of `_REFUSALS`."""
