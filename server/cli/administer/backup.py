"""`mochi-server backup` and `mochi-server restore`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Annotated

import typer

from server.cli.options import BROKER, any_broker, expand, settings_options
from server.cli.output import errors, whole_file
from server.errors import OutputError, visible
from server.keys.backup import BackupFileError, HistoryLine, KeyLine, lines_of_backup
from server.keys.restore import restore as restore_file
from server.keys.times import written
from worker.broker.connection import Client

BackupFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        callback=expand,
        help="The backup, lines of JSON; - for standard output or input.",
    ),
]
STANDARD = Path("-")


@settings_options(*BROKER)
def backup(file: BackupFile) -> None:
    """Write keys, balances, webhooks, usage and history to a file.

    The server may run. The file is replaced when it is whole, and only you may read it: it holds
    secrets that sign webhooks. Requests that wait or run, and videos, are not in it.

    Example: `mochi-server backup mochi.jsonl`

    Through a pipe: `mochi-server backup - | gzip > mochi.jsonl.gz`

    On a shared broker: `mochi-server backup mochi.jsonl --redis-url redis://broker:6379/0`
    """
    place = _standard_output() if file == STANDARD else whole_file(file)
    with any_broker() as redis, place as out:
        keys, ended = _write(redis, out)
    name = "standard output" if file == STANDARD else file
    errors.print(f"Wrote {_counted(keys, ended)} to {name}.")


@settings_options(*BROKER)
def restore(
    file: BackupFile,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Also keys that the broker has: terms, account and webhooks become those of the "
            "file; secrets and revocations stay, and usage is not lowered.",
        ),
    ] = False,
) -> None:
    """Read a backup into the broker.

    Restore before the first `up` or gateway, which makes keys of its own; on the same broker as
    before the server may run. A restore that was interrupted goes on when the same command runs
    again within a day, and begins again with --replace. Without --replace nothing is restored if
    the broker has a key of the file.

    Example: `mochi-server restore mochi.jsonl`

    Through a pipe: `gunzip -c mochi.jsonl.gz | mochi-server restore -`
    """
    with any_broker(makes_folder=True) as redis, _regular(file) as regular:
        done = restore_file(redis, regular, replace=replace)
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


def _write(redis: Client, file: IO[str]) -> tuple[int, int]:
    """The numbers of keys and of ended requests that were written."""
    keys = ended = 0
    for line in lines_of_backup(redis):
        file.write(line.model_dump_json() + "\n")
        keys += isinstance(line, KeyLine)
        ended += len(line.ended) if isinstance(line, HistoryLine) else 0
    return keys, ended


@contextmanager
def _standard_output() -> Iterator[IO[str]]:
    try:
        with open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False) as file:
            yield file
    except OSError as error:
        raise OutputError(f"Standard output cannot be written: {error.strerror}.") from None


@contextmanager
def _regular(file: Path) -> Iterator[Path]:
    """The file, or a private copy of what comes through a pipe: a restore reads it twice."""
    if file != STANDARD and (file.is_file() or not file.exists()):
        yield file
        return
    with TemporaryDirectory(prefix="mochi-restore-") as folder:
        copy = Path(folder, "stdin" if file == STANDARD else file.name)
        try:
            with _source(file) as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target)
        except OSError as error:
            raise BackupFileError(f"{file} cannot be copied to {copy}: {error.strerror}.") from None
        yield copy


def _source(file: Path) -> IO[bytes]:
    return open(sys.stdin.fileno(), "rb", closefd=False) if file == STANDARD else file.open("rb")
