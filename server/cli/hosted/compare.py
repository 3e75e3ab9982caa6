"""`mochi-server compare`: the same payload to the hosted API and to a local server."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from server.cli.access import Access, ApiKeyOption, ServerUrl
from server.cli.hosted.differences import Row, Verdict, rows
from server.cli.hosted.recording import Side, check_key, record
from server.cli.options import AsJson, exit_on_error, settings_options
from server.cli.output import console, errors, print_json, print_table
from server.errors import ClientError, visible

HOSTED_URL = "https://api.segmind.com"
COLUMNS = ("call", "what", "hosted", "local", "")


@settings_options("data_dir")
def compare(
    parameters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="Parameters, valid or not, like frames=49."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What the video shows.")] = "A red panda drinks tea",
    hosted: Annotated[
        str, typer.Option(help="The hosted API; its key: [env: SEGMIND_API_KEY] or a question.")
    ] = HOSTED_URL,
    local: ServerUrl = None,
    api_key: ApiKeyOption = None,
    hosted_key: Annotated[
        str | None, typer.Option(envvar="SEGMIND_API_KEY", show_envvar=False, hidden=True)
    ] = None,
    blocking: Annotated[
        bool, typer.Option("--blocking", help="Make the blocking call, too: a second video.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before credits are spent.")
    ] = False,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show what is equal, and the times, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask the hosted API and a local server, and compare the answers.

    Shows what differs in status codes, headers, fields, types and the video's facts, side by side.
    JSON has every row. The exit status is 0 if every difference is known, 1 otherwise.

    Example: `mochi-server compare --prompt "A pond" frames=49 seed=7`

    How a wrong parameter is answered: `mochi-server compare steps=5`
    """
    payload = {"prompt": prompt, **dict(map(_parameter, parameters or ()))}
    with exit_on_error():
        access = Access.of(local, api_key, "--local")
        key_hint = "The key is from SEGMIND_API_KEY." if hosted_key else ""
        hosted_key = hosted_key or _ask_key()
        if not yes:
            _confirm(f"Ask {hosted} for {'two videos' if blocking else 'one video'}")
        ours = Side("local server", *access)
        theirs = Side("hosted API", hosted, hosted_key, key_hint, "Check --hosted.")
        # First, as it costs nothing: no video is made where there is nothing to compare it with.
        check_key(ours)
        check_key(theirs)
        here = record(ours, payload, blocking=blocking)
        there = record(theirs, payload, blocking=blocking)
    table = [*rows(there, here)]
    if as_json:
        print_json({"payload": payload, "rows": [row._asdict() for row in table]})
    else:
        _print(table, show_all=show_all)
    answers = (*here.values(), *there.values())
    if not any(answer.video for answer in answers):
        has_video = any(answer.is_video for answer in answers)
        why = "ffmpeg is missing, which the extra mock brings" if has_video else "no answer has one"
        errors.print(f"No video was looked at: {why}.")
    raise typer.Exit(any(row.verdict is Verdict.DIFFERS for row in table))


def _ask_key() -> str:
    if not sys.stdin.isatty():
        raise ClientError("There is no key for the hosted API. Set SEGMIND_API_KEY.")
    return str(typer.prompt("API key of the hosted API", hide_input=True, err=True))


def _confirm(what: str) -> None:
    if not sys.stdin.isatty():
        raise ClientError(f"{what}, for your credits? Without a terminal, say so with --yes.")
    typer.confirm(f"{what}, for your credits?", abort=True, err=True)


def _parameter(text: str) -> tuple[str, Any]:
    """A field of the payload: the value is JSON, or text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise typer.BadParameter(f"{text}: expected NAME=VALUE, like frames=49.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _print(table: list[Row], *, show_all: bool) -> None:
    """Print the rows but additions, which the reasons below the table name."""
    reasons = [*dict.fromkeys(row.reason for row in table if row.reason)]
    shown = [row for row in table if not row.is_addition and (show_all or not row.is_equal)]
    if shown:
        print_table(COLUMNS, ((*row[:4], _mark(row, reasons)) for row in shown))
    for number, reason in enumerate(reasons, 1):
        names = {row.what: None for row in table if row.is_addition and row.reason == reason}
        console.print(f"known {number}: {reason} {visible(', '.join(names))}".rstrip())
    differences = sum(row.verdict is Verdict.DIFFERS for row in table)
    console.print(f"{differences} unknown difference{'s' * (differences != 1)}")


def _mark(row: Row, reasons: list[str]) -> str:
    return f"{row.verdict} {reasons.index(row.reason) + 1}" if row.reason else row.verdict
