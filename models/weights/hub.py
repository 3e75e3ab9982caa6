"""One model on the Hugging Face hub: what it consists of, and its files.

`huggingface_hub` knows HF_ENDPOINT, HF_TOKEN and the hub's addresses and errors. The bytes are
streamed here: its own `hf_hub_download` throws away what it has of a file when it is interrupted,
and one of these has ten gigabytes. Only whoever pulls imports this module: a gateway's installation
has no `huggingface_hub`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Self

import httpx2
from huggingface_hub import HfApi, close_session, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, not re-exported
    build_hf_headers,
    hf_raise_for_status,
)
from pydantic import ValidationError

from models.errors import WeightsError
from models.weights.manifest import WeightsFile

LIST_SECONDS = 30.0
SILENCE_SECONDS = 30.0
"""A connection over which nothing comes for so long is given up."""
WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Before each further try, when the last one has brought nothing."""
BUSY = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which it may work a moment later."""


class Hub:
    """One model on the hub. Used in a `with`, which closes the connections."""

    def __init__(self, hub_id: str, endpoint: str | None) -> None:
        """Take the endpoint as it is, or for None that of HF_ENDPOINT.

        Raises:
            WeightsError: it is no address.
        """
        self.hub_id = hub_id
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        if not re.match("https?://.", self.endpoint):
            raise WeightsError(
                f"HF_ENDPOINT={self.endpoint} is no address such as https://huggingface.co. "
                "Mend it, or unset it."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        close_session()

    def list_files(self, revision: str) -> tuple[str, dict[str, WeightsFile]]:
        """The commit that a revision is now, and all its files by their names.

        Raises:
            WeightsError: the hub is out of reach, or does not give it.
        """
        api = HfApi(endpoint=self.endpoint)
        with self.translate_errors(revision):
            try:
                model = api.model_info(
                    self.hub_id, revision=revision, files_metadata=True, timeout=LIST_SECONDS
                )
                files = {
                    file.rfilename: WeightsFile.model_validate(
                        {
                            "size": file.size,
                            "checksum": (
                                f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"
                            ),
                        }
                    )
                    for file in model.siblings or ()
                }
            except (JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValidationError):
                raise WeightsError(
                    f"{self.endpoint} does not answer as a hub does. Is HF_ENDPOINT right?"
                ) from None
        return str(model.sha), files

    def fetch(
        self,
        commit: str,
        name: str,
        part: Path,
        size: int,
        *,
        on_bytes: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        """Append to a draft what it lacks of a file. A broken connection is made anew.

        What came is not checked.

        Args:
            commit: of the model.
            name: of the file.
            part: the draft; made if missing.
            size: of the whole file, in bytes.
            on_bytes: told how many bytes came; less than none when some are thrown away. What it
                raises ends the work.
            stop: when set, nobody waits any longer.

        Raises:
            WeightsError: the hub is out of reach, or does not give it.
            OSError: the disk is full, or the like.
        """
        part.touch()
        tries = 0
        with self.translate_errors(commit):
            while (have := part.stat().st_size) < size:
                try:
                    self._append(commit, name, part, on_bytes)
                except (httpx2.TransportError, _BusyError):
                    tries = 0 if part.stat().st_size > have else tries + 1
                    if tries > len(WAITS_SECONDS):
                        raise
                    if tries:
                        stop.wait(WAITS_SECONDS[tries - 1])
                    on_bytes(0)

    def _append(self, commit: str, name: str, part: Path, on_bytes: Callable[[int], None]) -> None:
        have = part.stat().st_size
        url = hf_hub_url(self.hub_id, name, revision=commit, endpoint=self.endpoint)
        headers = build_hf_headers() | {"range": f"bytes={have}-", "accept-encoding": "identity"}
        stream = get_session().stream("GET", url, headers=headers, timeout=SILENCE_SECONDS)
        with stream as response:
            if response.status_code in BUSY:
                raise _BusyError(f"it answers {response.status_code}")
            hf_raise_for_status(response)
            is_rest = response.status_code == httpx2.codes.PARTIAL_CONTENT
            with part.open("ab" if is_rest else "wb") as file:
                if not is_rest:
                    on_bytes(-have)
                for chunk in response.iter_bytes():
                    on_bytes(len(chunk))  # first: when all is over, nothing more is written
                    file.write(chunk)

    @contextmanager
    def translate_errors(self, revision: str) -> Iterator[None]:
        name, place = self.hub_id, self.endpoint
        try:
            yield
        except OfflineModeIsEnabled:
            text = "HF_HUB_OFFLINE keeps us from the hub. Unset it to pull weights."
        except HFValidationError:
            text = f"MOCHI_WEIGHTS={name} is no hub id, such as genmo/mochi-1-preview."
        except GatedRepoError:
            text = (
                f"{name} is gated: accept its terms at {place}/{name}, and set HF_TOKEN to a token "
                "of that account."
            )
        except RevisionNotFoundError:
            text = (
                f"{name} has no commit {revision}. "
                f"Set MOCHI_REVISION to one of {place}/{name}/commits/main."
            )
        except UnicodeEncodeError:
            text = "HF_TOKEN holds a character that no token has. Copy it again."
        except HfHubHTTPError as error:
            text = self._refusal(error.response.status_code)
        except (httpx2.HTTPError, httpx2.InvalidURL, _BusyError) as error:
            text = (
                f"{place} is out of reach ({error or type(error).__name__}). Type again later; or "
                "check the network, HTTPS_PROXY and HF_ENDPOINT; or copy the folder of weights "
                "from another machine and set MOCHI_WEIGHTS=/path/to/folder (or --weights "
                "/path/to/folder)."
            )
        else:
            return
        raise WeightsError(text)

    def _refusal(self, status: int) -> str:
        name, place = self.hub_id, self.endpoint
        match status:
            case 401 | 404:  # the hub says 401 of what does not exist, too
                return (
                    f"{place} knows no model {name}, or none for us ({status}). Check "
                    "MOCHI_WEIGHTS; if it is private, set HF_TOKEN to a token that may read it."
                )
            case 403:
                return (
                    f"{place} refuses us {name} (403). Set HF_TOKEN to a token that may read it, "
                    f"of an account that has accepted its terms at {place}/{name}."
                )
            case _:
                return f"{place} answers {status} when asked for {name}. Type again later."


class _BusyError(Exception):
    """The hub asks for patience."""
