"""The Lua scripts that change records; each runs in the broker as one atomic step."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

_FOLDER = files("worker") / "lua"


@cache  # a version that is put in meanwhile must not mix with the one that runs
def source(name: str) -> str:
    """The text of script `name`, with what all scripts share before it.

    A broker whose memory is full accepts no new request, and still takes beats, results and what
    administrators do.
    """
    first_line = "" if name == "submit" else "#!lua flags=allow-oom\n"
    common, script = (_FOLDER / f"{part}.lua" for part in ("common", name))
    return first_line + common.read_text("utf-8") + script.read_text("utf-8")
