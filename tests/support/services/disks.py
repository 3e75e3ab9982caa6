"""Small disks of their own for processes, without root."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_UNSHARED = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec")
_MOUNT = 'mount -t tmpfs -o "size=$1" tmpfs "$0"; shift; exec "$@"'


def on_a_tiny_disk(folder: Path, size: str) -> tuple[str, ...]:
    """A command that mounts a disk of this size (`16k`) on a folder, for the command after it."""
    command = (*_UNSHARED, _MOUNT)
    probe = [*command, "/mnt", "16k", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    return (*command, str(folder), size)
