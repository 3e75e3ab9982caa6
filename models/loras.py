"""LoRAs that requests may name: their names, and the setting that names them. Without torch."""

from __future__ import annotations

import re
from pathlib import Path

NAME = r"[a-z0-9-]{1,40}"
MOST = 16
"""That a worker offers."""
MOST_AT_ONCE = 4
"""In one request. The buffers of the layers are as large as the four of the highest ranks need."""
MOST_SCALE = 2.0
"""Of a LoRA in a request, and its negative: styles are used from 0.5 to 1.2, and sliders from -2 to
2. With more, a LoRA outweighs the weights it is made for, and the pictures break."""

_ITEM = re.compile(rf"(?P<name>{NAME})(\s*=\s*(?P<path>.+))?")


def parse_named(text: str) -> dict[str, Path | None]:
    """Parse MOCHI_LORAS: `name=FILE.safetensors`, comma-separated; or empty.

    Returns:
        The file of each name; None of a name alone, which engines without real weights draw.

    Raises:
        ValueError: the text has another form, repeats a name, or has more than `MOST`.
    """
    named: dict[str, Path | None] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        match = _ITEM.fullmatch(item)
        if not match:
            raise ValueError(
                f"{item!r} is not name=FILE.safetensors, with a name of up to 40 lower-case "
                "letters, digits and hyphens"
            )
        if match["name"] in named:
            raise ValueError(f"{match['name']} is named twice")
        named[match["name"]] = Path(match["path"]) if match["path"] else None
    if len(named) > MOST:
        raise ValueError(f"it has {len(named)} LoRAs, and a worker offers at most {MOST}")
    return named
