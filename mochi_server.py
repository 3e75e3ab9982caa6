"""Where the command `mochi-server` starts: it puts right what Python and our packages rely on.

Not in a package: this name is unlike those in other projects, which may hide `models` or `server`.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("models", "server", "worker")


def main() -> None:
    _open_standard_files()
    _refuse_hidden_packages()
    from server.cli.main import app  # noqa: PLC0415 (now it is ours)

    try:
        app()
    except ImportError as error:
        _refuse_hidden_library(error)
        raise


def _open_standard_files() -> None:
    """After a shell's `<&-` the listener would be file 0, which children of `up` replace.

    After `>&-` or `2>&-` Python has no `sys.stdout` or `sys.stderr` to print to.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # then its number is the lowest that is free
            file = Path(os.devnull).open(mode)  # noqa: SIM115 (for good)
            os.set_inheritable(file.fileno(), True)  # noqa: FBT003 (positional only)
            setattr(sys, name, file)


def _refuse_hidden_packages() -> None:
    """Exit with status 78 if a project on PYTHONPATH has modules of the names of our packages."""
    own = Path(__file__).parent
    for name in PACKAGES:
        spec = find_spec(name)
        if spec and spec.origin and Path(spec.origin) != own / name / "__init__.py":
            sys.stderr.write(
                f"{spec.origin} is imported in place of mochi-server's package `{name}`. Take its "
                "folder out of PYTHONPATH.\n"
            )
            sys.exit(os.EX_CONFIG)


def _refuse_hidden_library(error: ImportError) -> None:
    """Exit with status 78 if the module that lacks a name is a file on PYTHONPATH."""
    folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if error.path and any(Path(error.path).is_relative_to(Path(each)) for each in folders):
        sys.stderr.write(
            f"{error.path} is imported in place of a library of mochi-server ({error}). Take its "
            "folder out of PYTHONPATH.\n"
        )
        sys.exit(os.EX_CONFIG)


if __name__ == "__main__":
    main()
