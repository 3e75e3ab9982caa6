"""Loads the Lua scripts. The broker runs each as one atomic step."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from worker.store.keyspace import BOUNDS_MS

_FOLDER = files("worker.store") / "lua"


@cache  # an upgrade on disk must not mix with the version that runs
def source(name: str) -> str:
    """Script `name`, after the code that all scripts share.

    A broker with full memory refuses submits, but still takes heartbeats, results and the acts of
    administrators (`allow-oom`).
    """
    first_line = "" if name == "submit" else "#!lua flags=allow-oom\n"
    common, script = (_FOLDER / f"{part}.lua" for part in ("common", name))
    bounds = f"local BOUNDS_MS = {{ {', '.join(map(str, BOUNDS_MS))} }}\n"
    return first_line + bounds + common.read_text("utf-8") + script.read_text("utf-8")
