"""Other releases of the product, as their wheels have them: the files of the packages in a folder.

The wheel is pure Python, so a process runs a release when its folder comes first in PYTHONPATH.
The libraries are those of this environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

from models.version import RELEASES

ROOT = Path(__file__).parents[2]
FILES = ("mochi_server.py", "server", "worker", "models")
"""What a wheel has; see `pyproject.toml`."""
BEFORE_SCHEMA = "2eb834c8ddc681ffddcc1ac219c02c10f261e4f2"
"""Stands for the last release until there is a tag: the last commit without the schema's mark."""


def within(folder: Path) -> tuple[str, str]:
    """The command before `python` that makes a process run the release in `folder`."""
    return "env", f"PYTHONPATH={folder}"


def last_release(repository: Path = ROOT) -> str:
    """The tag of the last release before this commit; without one, the commit that stands for it.

    On the commit of a release that is the release before it.
    """
    described = _git("describe", *RELEASES, "--abbrev=0", "HEAD^", repository=repository)
    return described.stdout.decode().strip() or BEFORE_SCHEMA


def has_history(ref: str) -> bool:
    """Whether this checkout has the commit: a shallow clone or an archive may not."""
    return _git("cat-file", "-e", f"{ref}^{{commit}}").returncode == 0


def unpack(ref: str, folder: Path) -> Path:
    """The release at a git ref, in `folder`. Raises CalledProcessError without that commit."""
    archive = _git("archive", ref, "--", *FILES)
    archive.check_returncode()
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    _check(folder)
    return folder


def next_release(folder: Path, schema: int, reads: set[int]) -> Path:
    """This release as a later one with another schema would be, in `folder`."""
    for name in FILES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    module = folder / "worker" / "broker" / "schema.py"
    text = module.read_text()
    for old, new in (
        ("SCHEMA = 1\n", f"SCHEMA = {schema}\n"),
        ("READS = frozenset({SCHEMA})\n", f"READS = frozenset({reads})\n"),
    ):
        assert old in text
        text = text.replace(old, new)
    module.write_text(text)
    _check(folder)
    return folder


def _check(folder: Path) -> None:
    """A process must import the packages of the folder, not the installed ones."""
    asked = (
        "import server, worker, models; print(server.__file__, worker.__file__, models.__file__)"
    )
    told = subprocess.run(
        [*within(folder), sys.executable, "-P", "-c", asked], capture_output=True, check=True
    )
    assert all(Path(name).is_relative_to(folder) for name in told.stdout.decode().split())


def _git(*arguments: str, repository: Path = ROOT) -> subprocess.CompletedProcess[bytes]:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, capture_output=True, check=False)
