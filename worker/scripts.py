"""The Lua scripts that change records; each runs in the broker as one atomic step."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

_FOLDER = files("worker") / "lua"
_WRITES = ("#!lua flags=allow-oom\n", ("common",))
_READS = ("#!lua flags=no-writes\n", ("common", "master"))
_FORMS = {"submit": ("", ("common",)), "find_keys": _READS, "look": _READS}
"""First line, and what comes before the script. `alive` could be of those that read: it is how a
gateway notices that the broker takes nothing."""


@cache  # a version that is put in meanwhile must not mix with the one that runs
def source(name: str) -> str:
    """The text of script `name`, with what all scripts share before it.

    A broker whose memory is full accepts no new request, and still takes beats, results and what
    administrators do. One that refuses to write, as without its replicas or with a full disk, still
    tells what it knows.
    """
    first_line, parts = _FORMS.get(name, _WRITES)
    texts = ((_FOLDER / f"{part}.lua").read_text("utf-8") for part in (*parts, name))
    return first_line + "".join(texts)
