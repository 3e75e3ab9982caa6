"""What commands print, and the files that they write."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

from rich.console import Console
from rich.table import Table

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
        draft_of(path).open("ab").close()
        draft_of(path).unlink()
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
