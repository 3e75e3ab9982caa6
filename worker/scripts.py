"""The Lua scripts that change records; each runs in the broker as one atomic step."""

from __future__ import annotations

from importlib.resources import files

_FOLDER = files("worker") / "lua"


def source(name: str) -> str:
    """The text of script `name`, with what all scripts share before it."""
    common, script = (_FOLDER / f"{part}.lua" for part in ("common", name))
    return common.read_text("utf-8") + script.read_text("utf-8")
