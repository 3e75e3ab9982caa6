"""`mochi-server backup` and `mochi-server restore`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from server.cli.options import BROKER, any_broker, expand, settings_options
from server.cli.output import check_file, draft_of, errors, unwritable
from server.errors import visible
from server.keys.backup import HistoryLine, KeyLine, lines_of_backup
from server.keys.restore import restore as restore_file
from server.keys.times import written
from worker.broker.connection import Client

BackupFile = Annotated[
    Path, typer.Argument(metavar="FILE", callback=expand, help="The backup, lines of JSON.")
]


@settings_options(*BROKER)
def backup(file: BackupFile) -> None:
    """Write keys, balances, webhooks, usage and history to a file.

    The server may run. The file is replaced when it is whole, and only you may read it: it holds
    secrets that sign webhooks. Requests that wait or run, and videos, are not in it.

    Example: `mochi-server backup mochi.jsonl`

    On a shared broker: `mochi-server backup mochi.jsonl --redis-url redis://broker:6379/0`
    """
    with any_broker() as redis:
        check_file(file)
        keys, ended = _write(redis, file)
    errors.print(f"Wrote {_counted(keys, ended)} to {file}.")


@settings_options(*BROKER)
def restore(
    file: BackupFile,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Also keys that the broker has: terms, account, usage and webhooks become those "
            "of the file; secrets and revocations stay.",
        ),
    ] = False,
) -> None:
    """Read a backup into the broker.

    The server may run. A restore that was interrupted goes on when the same command runs again.
    Without --replace nothing is restored if the broker has a key of the file.

    Example: `mochi-server restore mochi.jsonl`
    """
    with any_broker(makes_folder=True) as redis:
        done = restore_file(redis, file, replace=replace)
    for name in done.revoked:
        errors.print(visible(f"`{name}` was revoked after the backup, and stays so."))
    if done.skipped:
        errors.print(f"Went on after {done.skipped} lines that an earlier try had restored.")
    what = _counted(done.keys, done.ended)
    errors.print(f"Restored {what}, as of {written(done.made_at)}.")


def _counted(keys: int, ended: int) -> str:
    return (
        f"{keys:,} {'key' if keys == 1 else 'keys'} and {ended:,} ended "
        f"{'request' if ended == 1 else 'requests'} of the history"
    )


def _write(redis: Client, file: Path) -> tuple[int, int]:
    """Write a draft, and put it in place. Returns the numbers of keys and of ended requests."""
    draft, keys, ended = draft_of(file), 0, 0
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                for line in lines_of_backup(redis):
                    out.write(line.model_dump_json() + "\n")
                    keys += isinstance(line, KeyLine)
                    ended += len(line.ended) if isinstance(line, HistoryLine) else 0
                out.flush()
                os.fsync(out.fileno())
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(file, error) from None
    return keys, ended
