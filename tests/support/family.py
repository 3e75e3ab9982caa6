"""The processes that a process started."""

from __future__ import annotations

from contextlib import suppress

import psutil


def children_with(pid: int, argument: str, *, recursive: bool = False) -> list[psutil.Process]:
    """Those children with this argument in their command line; not those that died meanwhile."""
    found = []
    for child in children_of(pid, recursive=recursive):
        with suppress(psutil.NoSuchProcess):  # or ZombieProcess, which is one
            if argument in child.cmdline():
                found.append(child)
    return found


def children_of(pid: int, *, recursive: bool = False) -> list[psutil.Process]:
    """Those that run; none if the process itself is gone."""
    running = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=recursive):
            with suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    running.append(child)
    return running
