"""`mochi-server generate` and `finish`: submit, follow with a progress bar, download the video."""

from __future__ import annotations

import signal
import time
from contextlib import nullcontext
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx2
import typer
from pydantic.fields import FieldInfo
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from models.params import FORMATS, MODEL, STILLS, RequestParams, Still
from server.api.submit.plan import DRAFT_STEPS
from server.cli.access import START_IT, Access, ApiKeyOption, ServerUrl
from server.cli.options import (
    add_options,
    exit_on_error,
    expand,
    option,
    settings_options,
)
from server.cli.output import check_file, draft_of, errors, new_file
from server.errors import ClientError, UnreachableError, visible
from worker.job import Stage
from worker.process.shutdown import on_signals

POLL_SECONDS = 0.5
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 20
PATIENT_POLLS = 20
"""Polls in a row that may fail before the command gives up."""
PASSING = frozenset({502, 503, 504})
"""Temporary: from a server without its broker, or a proxy without its server."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
DEFAULT_OUTPUT = Path("mochi")
"""With the format at its end."""
DEFAULT_FORMAT = RequestParams.model_fields["format"].default
KINDS = {".mp4": "an MP4", ".webm": "a WebM", ".gif": "a GIF"}


def _help(field: FieldInfo) -> str:
    is_choice = get_origin(field.annotation) is Literal
    choices = get_args(field.annotation) if is_choice else ()
    values = f" [values: {', '.join(choices)}]" if choices else ""
    default = "" if field.default in ("", False, None) else f" [default: {field.default!r}]"
    return f"{field.description}{values}{default}"


_PARAMS = {
    name: option(name, field, _help(field))
    for name, field in RequestParams.model_fields.items()
    if not field.is_required()
}


@settings_options("data_dir")
@partial(add_options, options=_PARAMS)
def generate(
    prompt: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT", help=RequestParams.model_fields["prompt"].description),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            callback=expand,
            help="The video to write or overwrite; .webm or .gif at its end chooses the format. "
            "[default: mochi.mp4, or mochi-2.mp4, mochi-3.mp4 … if that exists]",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="The model, with ranges and defaults of its own.")
    ] = MODEL,
    draft: Annotated[
        int | None,
        typer.Option(help="Run only the first so many steps; `mochi-server finish` does the rest."),
    ] = None,
    url: ServerUrl = None,
    api_key: ApiKeyOption = None,
    **params: Any,  # noqa: ANN401 (of the fields of RequestParams)
) -> None:
    """Ask a running server for a video and write it to a file.

    Example: `mochi-server generate "A red panda drinks tea"`

    Shorter, to a chosen file: `mochi-server generate "A pond" -o pond.mp4 --frames 31`

    With another model: `mochi-server generate "A pond" --model mochi-1-fast`

    Pictures of the video go beside it: `--poster` writes mochi-poster.jpg.
    """
    if len(prompt) > 1:
        raise typer.BadParameter('Put the prompt into quotes: generate "A red panda".')
    on_signals(signal.default_int_handler, signal.SIGTERM, signal.SIGHUP)  # as Ctrl-C
    asked = {name: value for name, value in params.items() if value is not None}
    if draft is not None:
        asked[DRAFT_STEPS] = draft
    suffix = output.suffix.lower().removeprefix(".") if output else ""
    if suffix in FORMATS and suffix != DEFAULT_FORMAT:
        asked.setdefault("format", suffix)
    kind = asked.get("format", DEFAULT_FORMAT)
    default = DEFAULT_OUTPUT.with_suffix(f".{kind if kind in FORMATS else DEFAULT_FORMAT}")
    with exit_on_error():
        client = Client(Access.of(url, api_key))
        with nullcontext(output) if output else new_file(default) as file:
            client.generate({"prompt": prompt[0], **asked}, file, model)


@settings_options("data_dir")
def finish(
    request_id: Annotated[
        str, typer.Argument(metavar="ID", help="The draft, as `generate --draft` names it.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            callback=expand,
            help="The video to write or overwrite. [default: as for `generate`]",
        ),
    ] = None,
    url: ServerUrl = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Run the steps that a draft has left, and write the video to a file.

    Example: `mochi-server generate "A pond" --draft 8`, then `mochi-server finish ID`
    """
    on_signals(signal.default_int_handler, signal.SIGTERM, signal.SIGHUP)  # as Ctrl-C
    with exit_on_error():
        client = Client(Access.of(url, api_key))
        default = DEFAULT_OUTPUT.with_suffix(client.suffix_of(request_id))
        with nullcontext(output) if output else new_file(default) as file:
            client.finish(request_id, file)


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
        self._make(f"/v2/{quote(model, safe='')}", params, output)

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
        request_id = self._submit(path, body)
        # Not by the links in the response: behind a proxy they can lead to another host.
        request_url = self._request_url(request_id)
        try:
            self._follow(f"{request_url}/status")
            result = self._json("GET", request_url)
            size = self._download(result["output"], output)
            stills = [self._download_still(result, still, output) for still in STILLS]
        except ClientError as error:
            said = str(error).removesuffix(".")
            raise ClientError(f"{said}. The request is {request_id}.") from None
        except KeyboardInterrupt:
            self._cancel(request_url)
            raise
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
                f"A draft: {draft['steps']} of {draft['total_steps']} steps. To run the others: "
                f"mochi-server finish {result['request_id']}"
            )

    def _submit(self, path: str, body: dict[str, Any]) -> str:
        """Make a request and return its id. An interruption before it is known cancels, too."""
        headers = {"idempotency-key": str(uuid4())}  # the id of the same request comes again

        def ask() -> str:
            url = self._url + path
            return str(self._json("POST", url, json=body, headers=headers)["request_id"])

        try:
            return ask()
        except KeyboardInterrupt:
            try:
                self._cancel(self._request_url(ask()))
            except ClientError as error:
                errors.print(f"Cancelling failed: {error}", style="red")
            raise

    def _request_url(self, request_id: str) -> str:
        return f"{self._url}/v2/requests/{request_id}"

    def _cancel(self, url: str) -> None:
        try:
            answer = self._json("PUT", f"{url}/cancel")
        except ClientError as error:
            errors.print(f"Cancelling {url} failed: {error}", style="red")
            return
        if answer["status"] == "ALREADY_COMPLETED":
            errors.print(f"The request had already ended: {url}")
        else:
            errors.print("The request is cancelled.")

    def _follow(self, status_url: str) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
        )
        with Progress(*columns, TimeElapsedColumn(), console=errors) as progress:
            bar = progress.add_task("submitted", total=100)
            while True:
                body = self._poll(status_url)
                progress.update(bar, description=where(body), completed=body.get("progress", 0))
                if body["status"] == "COMPLETED":
                    return
                time.sleep(POLL_SECONDS)

    def _poll(self, status_url: str) -> Any:  # noqa: ANN401 (JSON)
        """Read the status; retry, as a server that restarts still knows the request."""
        for _ in range(PATIENT_POLLS):
            try:
                return self._json("GET", status_url)
            except UnreachableError:
                time.sleep(POLL_SECONDS)
        return self._json("GET", status_url)

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
