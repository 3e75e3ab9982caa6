"""What commands print, and the files that they write."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from rich.console import Console
from rich.table import Table

from models.settings import sync
from server.errors import OutputError, visible

WIDTH = 1000
"""Columns of output that is not a terminal: no line is cut or wrapped there."""

console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False)
errors = Console(stderr=True, highlight=False, markup=False)


def print_table(
    columns: Iterable[str],
    rows: Iterable[Iterable[object]],
    *,
    right: Collection[str] = (),
) -> None:
    """Print a table on standard output, with unprintable characters of its cells made visible.

    Columns of `right` are aligned to the right. Where the terminal is too narrow for a line of the
    table, each row becomes a paragraph: a line for each cell that is not empty.
    """
    names = [*columns]
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    table = Table(box=None)
    for name in names:
        table.add_column(name, no_wrap=True, justify="right" if name in right else "left")
    for line in cells:
        table.add_row(*line)
    unlimited = console.options.update(width=WIDTH)
    if console.measure(table, options=unlimited).maximum <= console.width:
        console.print(table, soft_wrap=True)
        return
    for number, line in enumerate(cells):
        pairs = zip(names, line, strict=True)
        paragraph = "\n".join(f"{name}: {cell}" for name, cell in pairs if cell)
        console.print(("\n" if number else "") + paragraph, soft_wrap=True)


def print_json(value: object) -> None:
    """Print JSON on standard output; decimals as numbers."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=float) + "\n")


def draft_of(path: Path) -> Path:
    """The file that is written first, and then replaces `path`."""
    return path.with_name(path.name + ".part")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Reserve `path`, or the first of NAME-2, NAME-3 … that is free; removed if it stays empty.

    Raises:
        OutputError: the folder cannot be written to.
    """
    check_file(path)
    names = chain([path], (path.with_stem(f"{path.stem}-{number}") for number in count(2)))
    path = next(name for name in names if _is_made(name))
    try:
        yield path
    finally:
        if path.stat().st_size == 0:
            path.unlink()


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A private file to write, which replaces `path` when it is whole and on disk.

    Each call has a draft of its own, so that of two at once the last one counts. A link stays, and
    what it leads to is replaced.

    Raises:
        OutputError: it cannot be written, or `path` is a device, a pipe or a folder.
    """
    check_file(path)
    if path.exists() and not path.is_file():
        raise OutputError(
            f"{path} is no regular file: give the name of one, or - for standard output."
        )
    target = Path(os.path.realpath(path))
    draft = None
    try:
        with _draft_beside(target) as file:
            draft = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        sync(target.parent)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def _draft_beside(path: Path) -> IO[str]:
    """A new file in the same folder, which only its owner may read."""
    return NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f"{path.name}.", suffix=".part", delete=False
    )


def _is_made(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def check_file(path: Path) -> None:
    """Check that a file can be written there, before minutes are spent on its contents.

    An existing file is left as it is.

    Raises:
        OutputError: it cannot; the text says why.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file, like {path / 'NAME'}.")
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent} to write {path.name} to.")
    try:
        # A trial also covers a read-only disk, a long name and missing permissions.
        with _draft_beside(path) as trial:
            Path(trial.name).unlink()
    except OSError as error:
        raise unwritable(path, error) from None


def check_folder(path: Path) -> None:
    """Make a folder, and check that files can be written to it.

    Raises:
        OutputError: they cannot; the text says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{path} is a file: give the name of a folder.") from None
    except OSError as error:
        raise unwritable(path, error) from None
    check_file(path / "trace")


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error to raise when `path` cannot be written."""
    return OutputError(f"{path} cannot be written: {error.strerror}. Choose another place.")
