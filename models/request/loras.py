"""LoRAs that requests may name: their names, and the setting that names them. Without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

NAME = r"[a-z0-9-]{1,40}"
MOST = 16
"""That a worker offers."""
MOST_AT_ONCE = 4
"""In one request. The buffers of the layers are as large as the four of the highest ranks need."""
MOST_SCALE = 2.0
"""Of a LoRA in a request, and its negative: styles are used from 0.5 to 1.2, and sliders from -2 to
2. With more, a LoRA outweighs the weights it is made for, and the pictures break."""
LONGEST_FLOAT = len("-1.7976931348623157e+308")
"""An integer may have thousands of digits."""

RULE = (
    'the name of a LoRA, or an object like {"noir": 0.8} of up to '
    f"{MOST_AT_ONCE} names with their scales, numbers from -{MOST_SCALE:g} to {MOST_SCALE:g}"
)
JSON_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": f"^{NAME}$"},
        {
            "type": "object",
            "propertyNames": {"pattern": f"^{NAME}$"},
            "additionalProperties": {
                "type": "number",
                "minimum": -MOST_SCALE,
                "maximum": MOST_SCALE,
            },
            "maxProperties": MOST_AT_ONCE,
        },
        {"type": "null"},
    ]
}

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


def scales_of(value: object) -> dict[str, float] | None:
    """The LoRAs that a request asks for, by name and in its order; None for none.

    Args:
        value: a name, an object of names and scales, or either as the text of a form.

    Raises:
        ValueError: it is something else; the text completes "it has …".
    """
    if isinstance(value, str):
        value = _of_text(value.strip())
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError("another type")  # noqa: TRY004 (of a client's value)
    if len(value) > MOST_AT_ONCE:
        raise ValueError(f"{len(value)} names")
    for name, scale in value.items():
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise ValueError("a name that is not up to 40 lower-case letters, digits and hyphens")
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise ValueError(f"a scale of `{name}` that is no number")  # noqa: TRY004 (as above)
        if not -MOST_SCALE <= scale <= MOST_SCALE:
            shown = str(scale) if len(str(scale)) <= LONGEST_FLOAT else "a number of many digits"
            raise ValueError(f"{shown} as the scale of `{name}`")
    return {name: float(value[name]) for name in sorted(value)} or None


def _of_text(text: str) -> object:
    if not text.startswith("{"):
        return {text: 1.0} if text else None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("a text that is no JSON") from None
