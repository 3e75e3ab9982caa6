"""Which build of the project this is: version and commit.

A release is a tag such as v0.2.0. After it, versions are those of development towards the next
minor release: 12 commits after v0.1.0 comes 0.2.0.dev12+g0123abc, which ends in `.dirty` where
tracked files differ from the commit.

It stands in `record.json` of a wheel, a source distribution or an image; `git archive` fills it in,
too. In a checkout git is asked, so that an editable installation has no version of yesterday.
Hatchling runs this file by its path: it imports nothing of the project.
"""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

RECORD = Path(__file__).with_name("record.json")
ROOT = Path(__file__).parents[2]
UNKNOWN = "0+unknown"
RELEASES = ("--tags", "--match", "v[0-9]*.[0-9]*.[0-9]*", "--exclude", "*[!v0-9.]*")
"""Options of `git describe`, as in `record.json`: a tag like v0.2.0-rc1 is no release."""
_DESCRIBED = re.compile(r"v(\d+)\.(\d+)\.(\d+)(?:-(\d+)-g[0-9a-f]+)?")
_SHORT = 9
"""Digits of a commit in a version."""


class Build(NamedTuple):
    """Version by PEP 440, and the commit's 40 hexadecimal digits, or empty where not known."""

    version: str
    commit: str

    @property
    def is_dirty(self) -> bool:
        return self.version.endswith(".dirty")

    @property
    def variables(self) -> dict[str, str]:
        """Those by which compose.yaml tells a build of the images its version."""
        return {"BUILD_VERSION": self.version, "BUILD_REVISION": self.commit}

    def __str__(self) -> str:
        return f"{self.version} (commit {self.commit})" if self.commit else self.version


@cache
def this_build() -> Build:
    record = json.loads(RECORD.read_text())
    if "version" in record:
        return Build(**record)
    if not record["commit"].startswith("$"):
        return _build(record["describe"], record["commit"])
    return _of_checkout()


def _of_checkout() -> Build:
    try:
        commit = _git("rev-parse", "HEAD")
        described = _git("describe", *RELEASES, "--long", "--always")
        is_dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
        if not _DESCRIBED.fullmatch(described):  # no tag
            described = f"v0.0.0-{_git('rev-list', '--count', 'HEAD')}-g{commit}"
    except (OSError, subprocess.CalledProcessError):
        return Build(UNKNOWN, "")
    return _build(described, commit, is_dirty=is_dirty)


def _git(*arguments: str) -> str:
    """What git says of the repository at `ROOT`, not of one around it."""
    command = ["git", f"--git-dir={ROOT / '.git'}", "--no-optional-locks", *arguments]
    ended = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return ended.stdout.strip()


def _build(described: str, commit: str, *, is_dirty: bool = False) -> Build:
    """The build of a commit, from its output of `git describe`; empty if no tag is known."""
    found = _DESCRIBED.fullmatch(described)
    major, minor, patch, distance = map(int, found.groups(default=0)) if found else (0, 0, 0, 0)
    if found and not distance and not is_dirty:
        return Build(f"{major}.{minor}.{patch}", commit)
    local = f"g{commit[:_SHORT]}{'.dirty' if is_dirty else ''}"
    return Build(f"{major}.{minor + 1}.0.dev{distance}+{local}", commit)
