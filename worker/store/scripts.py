"""The Lua scripts that change records; each runs in the broker as one atomic step."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from worker.store.keyspace import BOUNDS_MS

_FOLDER = files("worker.store") / "lua"


@cache  # a version that is put in meanwhile must not mix with the one that runs
def source(name: str) -> str:
    """The text of script `name`, with what all scripts share before it.

    A broker whose memory is full accepts no new request, and still takes beats, results and what
    administrators do.
    """
    first_line = "" if name == "submit" else "#!lua flags=allow-oom\n"
    common, script = (_FOLDER / f"{part}.lua" for part in ("common", name))
    bounds = f"local BOUNDS_MS = {{ {', '.join(map(str, BOUNDS_MS))} }}\n"
    return first_line + bounds + common.read_text("utf-8") + script.read_text("utf-8")
