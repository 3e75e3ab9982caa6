"""`mochi-server generate` and `finish`: make videos with a running server, and write them."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from models.request.params import FORMATS, MODEL, RequestParams
from server.api.submit.plan import COUNT, DRAFT_STEPS, MOST_REQUESTS
from server.cli.access import Access, ApiKeyOption, ServerUrl
from server.cli.client import DEFAULT_FORMAT, Client
from server.cli.options import add_options, exit_on_error, expand, option, settings_options
from server.cli.output import check_file, new_file
from worker.process.shutdown import on_signals

DEFAULT_OUTPUT = Path("mochi")
"""With the format at its end."""


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
    count: Annotated[
        int | None,
        typer.Option(
            help=f"Make so many videos, 1 to {MOST_REQUESTS}, with the seeds from --seed on; the "
            "name of each file ends with its seed."
        ),
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

    Four seeds as drafts, pond-7.mp4 to pond-10.mp4, of which `finish` makes the one that you like:
    `mochi-server generate "A pond" --seed 7 --count 4 --draft 8 -o pond.mp4`
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
        if count is not None:
            check_file(output or default)
            body = {"prompt": prompt[0], **asked, COUNT: count}
            client.generate_several(body, partial(_file_of_seed, output, default), model)
            return
        with nullcontext(output) if output else new_file(default) as file:
            client.generate({"prompt": prompt[0], **asked}, file, model)


def _file_of_seed(output: Path | None, default: Path, seed: int) -> AbstractContextManager[Path]:
    """The video of one of several seeds: named by it, and new unless `output` was chosen."""
    path = output or default
    path = path.with_stem(f"{path.stem}-{seed}")
    return nullcontext(path) if output else new_file(path)


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
