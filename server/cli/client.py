"""A client of our own API, for the command line: ask, follow with a progress bar, download."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from models.params import MODEL
from server.cli.output import check_file, draft_of
from server.errors import ClientError, UnreachableError
from worker.job import Stage

POLL_SECONDS = 0.5
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 20
PATIENT_POLLS = 20
"""Polls that may fail in a row before the video is given up."""
PASSING = frozenset({502, 503, 504})
"""Said by the server without its broker, or by a proxy without the server."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Client:
    """Talks to one server with one key."""

    def __init__(self, url: str, api_key: str) -> None:
        # As the SDK's base URL, or as a person would type it.
        url = url if "://" in url else f"http://{url}"
        self._url = url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(
            headers={"x-api-key": api_key},
            timeout=TIMEOUT_SECONDS,
            trust_env=_may_use_proxy(url),
            verify=httpx.create_ssl_context(),  # with SSL_CERT_FILE, for a CA of one's own
        )
        self._console = Console(stderr=True)

    def generate(self, params: dict[str, Any], output: Path) -> None:
        """Make a video and write it to `output`, with a progress bar on standard error.

        Raises:
            OutputError: it cannot be written there; nothing was asked for.
            ClientError: there is no video; nothing was written.
        """
        check_file(output)
        submitted = self._json("POST", f"{self._url}/v2/{MODEL}", json=params)
        try:
            self._follow(submitted["status_url"])
            result = self._json("GET", submitted["response_url"])
            size = self._download(result["output"], output)
        except ClientError as error:
            said = str(error).removesuffix(".")
            raise ClientError(f"{said}. The request is {submitted['request_id']}.") from None
        except KeyboardInterrupt:
            self._cancel(submitted["response_url"])
            raise
        seconds = result["metrics"]["total_time"]
        self._console.print(
            f"{output}: {size:,} bytes, seed {result['seed']}, {seconds:.1f} seconds"
        )
        for warning in result.get("warnings", ()):
            self._console.print(warning, style="yellow")

    def _cancel(self, url: str) -> None:
        """Nobody wants the video any more; the GPU has others to work for."""
        try:
            answer = self._json("PUT", f"{url}/cancel")
        except ClientError as error:
            self._console.print(f"Cancelling {url} failed: {error}", style="red", markup=False)
            return
        if answer["status"] == "ALREADY_COMPLETED":
            self._console.print(f"The request has ended before: {url}", markup=False)
        else:
            self._console.print("The request is cancelled.")

    def _follow(self, status_url: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as progress:
            bar = progress.add_task("submitted", total=100)
            while True:
                body = self._poll(status_url)
                progress.update(bar, description=where(body), completed=body.get("progress", 0))
                if body["status"] == "COMPLETED":
                    return
                time.sleep(POLL_SECONDS)

    def _poll(self, status_url: str) -> Any:  # noqa: ANN401 (JSON)
        """A server that is restarted meanwhile knows the request afterwards."""
        for _ in range(PATIENT_POLLS):
            try:
                return self._json("GET", status_url)
            except UnreachableError:
                time.sleep(POLL_SECONDS)
        return self._json("GET", status_url)

    def _download(self, url: str, output: Path) -> int:
        draft = draft_of(output)
        remedy = f"The video is made and kept for a while; fetch it with: curl -o FILE '{url}'"
        try:
            # Without the key: the link is signed, and may lead to somebody else's object store.
            with _get(url) as response, draft.open("wb") as file:
                response.raise_for_status()
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
            size = draft.stat().st_size
            draft.replace(output)
        except httpx.HTTPError as error:
            said = str(error).removesuffix(".")
            raise ClientError(f"The video cannot be downloaded: {said}. {remedy}") from None
        except OSError as error:
            raise ClientError(f"{output} cannot be written: {error.strerror}. {remedy}") from None
        finally:
            draft.unlink(missing_ok=True)
        return size

    def _json(self, verb: str, url: str, **options: Any) -> Any:  # noqa: ANN401 (JSON)
        try:
            response = self._http.request(verb, url, **options)
            if response.status_code in PASSING:
                raise UnreachableError(_words(response))
            body = response.json()
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"No answer from {self._url}: {error}. Is it running? `mochi-server up`"
            ) from None
        except ValueError:
            raise ClientError(f"{self._url} is no mochi-server: it does not answer JSON.") from None
        if response.is_success:
            return body
        raise ClientError(_words(response))


def where(body: dict[str, Any]) -> str:
    """Where a request is on its way, by its status. Other servers may say no more than that."""
    place = body.get("stage", body["status"].lower()).replace("_", " ")
    if position := body.get("queue_position"):
        place += f", place {position}"
    elif body.get("stage") == Stage.DENOISING:
        place += f", step {body['step']} of {body['total_steps']}"
    left = body.get("eta_seconds")
    return place if left is None else f"{place}, about {left:.0f} s left"


def _get(url: str) -> AbstractContextManager[httpx.Response]:
    return httpx.stream(
        "GET",
        url,
        timeout=TIMEOUT_SECONDS,
        trust_env=_may_use_proxy(url),
        verify=httpx.create_ssl_context(),
    )


def _may_use_proxy(url: str) -> bool:
    """A proxy for the outside knows nothing of this machine."""
    return urlsplit(url).hostname not in LOOPBACK


def _words(response: httpx.Response) -> str:
    """The server's own, where it is one of ours."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = "The server does not answer."
    return f"{error} ({response.status_code})"
