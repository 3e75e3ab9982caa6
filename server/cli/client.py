"""The client of `mochi-server generate` and `finish`: submits, follows, downloads."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx2
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from models.request.params import MODEL, STILLS, RequestParams, Still
from server.cli.access import START_IT, Access
from server.cli.output import check_file, draft_of, errors, new_file
from server.errors import ClientError, CommandError, UnreachableError, visible
from worker.job import Stage

POLL_SECONDS = 0.5
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 20
PATIENT_POLLS = 20
"""Polls in a row that may fail before the command gives up."""
PASSING = frozenset({502, 503, 504})
"""Temporary: from a server without its broker, or a proxy without its server."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
DEFAULT_FORMAT = RequestParams.model_fields["format"].default
KINDS = {".mp4": "an MP4", ".webm": "a WebM", ".gif": "a GIF"}

FileOfSeed = Callable[[int], AbstractContextManager[Path]]
"""The file to write a video to, by its seed."""


class Client:
    """Talks to one server with one key."""

    def __init__(self, access: Access) -> None:
        # As the SDK's base URL, or as a person would type it.
        url = access.url if "://" in access.url else f"http://{access.url}"
        self._url = url.rstrip("/").removesuffix("/v1")
        self._http = http_client(url, {"x-api-key": access.api_key})
        self._key_hint = access.key_hint
        self._remedy = access.remedy

    def generate(self, params: dict[str, Any], output: Path, model: str = MODEL) -> None:
        """Generate a video and write it to `output`, with a progress bar on standard error.

        Raises:
            OutputError: `output` cannot be written; no request was made.
            ClientError: there is no video; nothing was written.
        """
        self._make(_model_path(model), params, output)

    def generate_several(
        self, params: dict[str, Any], file_of: FileOfSeed, model: str = MODEL
    ) -> None:
        """Generate the `count` of `params`, and write each video as soon as it is there.

        Raises:
            ClientError: at least one video is missing; the text says why. The others are written.
        """
        waiting = self._submit(_model_path(model), params)
        count, failures = len(waiting), []
        try:
            with closing(self._follow(waiting)) as ended:
                for request_id, failure in ended:
                    try:
                        if failure:
                            raise failure
                        self._write(request_id, file_of)
                    except CommandError as error:
                        failures.append(f"Request {request_id}: {error}")
        except UnreachableError as error:
            said = str(error).removesuffix(".")
            raise ClientError(f"{said}. The requests are {', '.join(waiting)}.") from None
        except KeyboardInterrupt:
            self._cancel(waiting)
            raise
        if failures:
            are = "is" if len(failures) == 1 else "are"
            missing = f"{len(failures)} of {count} videos {are} missing. "
            raise ClientError(missing + "\n".join(failures))

    def finish(self, draft_id: str, output: Path) -> None:
        """The same for the request that finishes a draft."""
        self._make(f"/v2/requests/{quote(draft_id, safe='')}/finish", {}, output)

    def suffix_of(self, request_id: str) -> str:
        """Of the file of a request's video, like `.mp4`. Raises ClientError if it has none."""
        result = self._json("GET", self._request_url(quote(request_id, safe="")))
        file_name = result.get("video", {}).get("file_name", "")
        return Path(file_name).suffix or f".{DEFAULT_FORMAT}"

    def _make(self, path: str, body: dict[str, Any], output: Path) -> None:
        check_file(output)
        waiting = self._submit(path, body)
        (request_id,) = waiting
        try:
            with closing(self._follow(waiting)) as ended:
                for _, failure in ended:
                    if failure:
                        raise failure
            self._write(request_id, lambda _seed: nullcontext(output))
        except ClientError as error:
            said = str(error).removesuffix(".")
            raise ClientError(f"{said}. The request is {request_id}.") from None
        except KeyboardInterrupt:
            self._cancel([request_id])
            raise

    def _write(self, request_id: str, file_of: FileOfSeed) -> None:
        """Download what a request has made, and report it."""
        result = self._json("GET", self._request_url(request_id))
        with file_of(result["seed"]) as output:
            size = self._download(result["output"], output)
            stills = [self._download_still(result, still, output) for still in STILLS]
        self._report(result, output, size, [*filter(None, stills)])

    @staticmethod
    def _report(result: dict[str, Any], output: Path, size: int, stills: list[Path]) -> None:
        seconds = result["metrics"]["total_time"]
        errors.print(f"{output}: {size:,} bytes, seed {result['seed']}, {seconds:.1f} seconds")
        suffix = Path(urlsplit(result["output"]).path).suffix
        if output.suffix.lower() not in {"", suffix}:
            kind = KINDS.get(suffix, "another file")
            errors.print(f"It is {kind}, whatever {output.name} ends with.", style="yellow")
        for still in stills:
            errors.print(f"{still}: {still.stat().st_size:,} bytes")
        for warning in result.get("warnings", ()):
            errors.print(visible(warning), style="yellow")
        if draft := result.get("draft"):
            errors.print(
                f"A draft: {draft['steps']} of {draft['total_steps']} steps. To run the others:\n"
                f"mochi-server finish {result['request_id']}",
                soft_wrap=True,  # it is to be copied
            )

    def _submit(self, path: str, body: dict[str, Any]) -> dict[str, str]:
        """Make requests, and return their ids, each with its label for a bar.

        An interruption before they are known cancels, too.
        """
        headers = {"idempotency-key": str(uuid4())}  # the id of the same request comes again

        def ask() -> dict[str, str]:
            submitted = self._json("POST", self._url + path, json=body, headers=headers)
            several = submitted.get("requests")  # a server of an earlier release makes one
            if several is None:
                return {submitted["request_id"]: ""}
            return {each["request_id"]: f"seed {each['seed']}: " for each in several}

        try:
            return ask()
        except KeyboardInterrupt:
            try:
                self._cancel(ask())
            except ClientError as error:
                errors.print(f"Cancelling failed: {error}", style="red")
            raise

    def _request_url(self, request_id: str) -> str:
        return f"{self._url}/v2/requests/{request_id}"

    def _cancel(self, request_ids: Iterable[str]) -> None:
        for url in map(self._request_url, request_ids):
            try:
                answer = self._json("PUT", f"{url}/cancel")
            except ClientError as error:
                errors.print(f"Cancelling {url} failed: {error}", style="red")
                continue
            if answer["status"] == "ALREADY_COMPLETED":
                errors.print(f"The request had already ended: {url}")
            else:
                errors.print("The request is cancelled.")

    def _follow(
        self, waiting: dict[str, str]
    ) -> Generator[tuple[str, ClientError | None], None, None]:
        """Show a bar for each request, and yield each at its end, with its failure.

        Args:
            waiting: the ids with their labels; those that have ended are removed.

        Raises:
            UnreachableError: the server does not answer for a while.
        """
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
        )
        with Progress(*columns, TimeElapsedColumn(), console=errors) as progress:
            bars = {
                request_id: progress.add_task(f"{label}submitted", total=100)
                for request_id, label in waiting.items()
            }
            while waiting:
                for request_id, label in [*waiting.items()]:
                    # Not by the links in the response: behind a proxy they can lead elsewhere.
                    body, failure = self._poll(f"{self._request_url(request_id)}/status")
                    if failure is None:
                        text, done = label + where(body), body.get("progress", 0)
                        progress.update(bars[request_id], description=text, completed=done)
                    if failure or body["status"] == "COMPLETED":
                        del waiting[request_id]
                        yield request_id, failure
                if waiting:
                    time.sleep(POLL_SECONDS)

    def _poll(self, status_url: str) -> tuple[dict[str, Any], ClientError | None]:
        """Read the status, or the failure; retry, as a server that restarts knows the request."""
        retries = PATIENT_POLLS
        while True:
            try:
                return self._json("GET", status_url), None
            except UnreachableError:
                if not retries:
                    raise
                retries -= 1
                time.sleep(POLL_SECONDS)
            except ClientError as error:
                return {}, error

    def _download_still(self, result: dict[str, Any], still: Still, video: Path) -> Path | None:
        """Write it beside the video, to a file that is new; None if the result has none."""
        if still not in result:
            return None
        name = f"{video.stem}-{still.replace('_', '-')}.jpg"
        with new_file(video.with_name(name)) as file:
            self._download(result[still]["url"], file)
        return file

    def _download(self, url: str, output: Path) -> int:
        draft = draft_of(output)
        remedy = f"The video is made and kept for a while; download it with: curl -o FILE '{url}'"
        try:
            # Without the key: the link is signed, and may lead to an object store.
            with (
                http_client(url) as http,
                http.stream("GET", url) as response,
                draft.open("wb") as file,
            ):
                response.raise_for_status()
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
            size = draft.stat().st_size
            draft.replace(output)
        except httpx2.HTTPError as error:
            raise ClientError(f"{failure_text(url, error)} {remedy}") from None
        except OSError as error:
            raise ClientError(f"{output} cannot be written: {error.strerror}. {remedy}") from None
        finally:
            draft.unlink(missing_ok=True)
        return size

    def _json(self, verb: str, url: str, **options: Any) -> Any:  # noqa: ANN401 (JSON)
        try:
            response = self._http.request(verb, url, **options)
            if response.status_code in PASSING:
                raise UnreachableError(_error_text(response))
            body = response.json()
        except httpx2.HTTPError as error:
            raise UnreachableError(failure_text(url, error, self._remedy)) from None
        except ValueError:
            raise ClientError(
                f"{self._url} is no mochi-server: its response is not JSON."
            ) from None
        if response.is_success:
            return body
        is_hinted = response.status_code == HTTPStatus.UNAUTHORIZED and self._key_hint
        raise ClientError(_error_text(response) + (f". {self._key_hint}" if is_hinted else ""))


def _model_path(slug: str) -> str:
    return f"/v2/{quote(slug, safe='')}"


def where(body: dict[str, Any]) -> str:
    """Describe the progress of a request. Only `status` is required in its body."""
    place = body.get("stage", body["status"].lower()).replace("_", " ")
    if position := body.get("queue_position"):
        place += f", place {position}"
    elif body.get("stage") == Stage.DENOISING:
        place += f", step {body['step']} of {body['total_steps']}"
    left = body.get("eta_seconds")
    return visible(place if left is None else f"{place}, about {left:.0f} s left")


def http_client(url: str, headers: dict[str, str] | None = None) -> httpx2.Client:
    return httpx2.Client(
        headers=headers,
        timeout=TIMEOUT_SECONDS,
        trust_env=urlsplit(url).hostname not in LOOPBACK,  # which no proxy can reach
        verify=httpx2.create_ssl_context(),  # with SSL_CERT_FILE, for an operator's own CA
    )


def failure_text(
    url: str, error: httpx2.HTTPError | httpx2.InvalidURL, remedy: str = START_IT
) -> str:
    """Name the server that failed, and what may help."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]  # without a password
    server = f"{parts.scheme}://{host}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            f"The certificate of {server} is not trusted: {error}. If it is one of your own, set "
            "SSL_CERT_FILE to the file of its CA, or to the certificate itself."
        )
    if "[SSL" in str(error):
        return f"{server} does not speak HTTPS: {error}. If it speaks HTTP, use http://{host}"
    if isinstance(error, httpx2.HTTPStatusError):
        return f"{server} does not give the video: {error.response.status_code}."
    said = f"No answer from {server}: {str(error).removesuffix('.')}."
    if "without sending a response" in said and parts.scheme == "http":
        return f"{said} If it speaks HTTPS, use https://{host}"
    return f"{said} {remedy}"


def _error_text(response: httpx2.Response) -> str:
    """The error in the body, if there is one."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = "The server failed without a message."
    return f"{str(error).removesuffix('.')} ({response.status_code})"
