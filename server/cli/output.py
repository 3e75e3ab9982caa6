"""Where commands write what they make: looked at before minutes are spent on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from server.errors import OutputError

WIDTH = 1000
"""Of a line that is not for a terminal: nothing is cut there, nor wrapped."""
_console = Console(width=None if sys.stdout.isatty() else WIDTH)


def draft_of(path: Path) -> Path:
    """What is written first, and then takes the place of `path`."""
    return path.with_name(path.name + ".part")


def check_file(path: Path) -> None:
    """Whether a file can be written there; an older one stays as it is.

    Raises:
        OutputError: it cannot; the text says why.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file, like {path / 'NAME'}.")
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent} to write {path.name} to.")
    try:
        # Only trying tells: of a read-only disk, a long name or a user's rights.
        draft_of(path).open("ab").close()
        draft_of(path).unlink()
    except OSError as error:
        raise unwritable(path, error) from None


def check_folder(path: Path) -> None:
    """Make a folder, and look whether files can be written to it.

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
    """What to raise when `path` cannot be written."""
    return OutputError(f"{path} cannot be written: {error.strerror}. Choose another place.")


def print_json(value: object) -> None:
    """JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
