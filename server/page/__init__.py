"""The page at `/`: renders its form from the parameters of the model.

`index.html` is a template, so that ranges and defaults stand only in `models/params.py`. The
scripts in `assets` call the API as any client does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from models.example import EXAMPLE_REQUEST
from models.params import HEIGHT, MODEL, WIDTH, GenerateParams

_LABELS = {"fps": "Frame rate"}
"""Labels for parameters whose names are not clear enough."""
_WIDEST_SLIDER = 1000
"""Parameters with a wider range have no slider."""

_TEXT = Template("""\
<div class="field">
  <label for="$name">$label</label>
  <textarea id="$name" name="$name" rows="$rows" data-most="$most"
    aria-describedby="$name-hint $name-error"$required>
$value</textarea>
  <p class="hint" id="$name-hint">$hint <span class="count" id="$name-count"></span></p>
  <p class="error" id="$name-error"></p>
</div>
""")
_NUMBER = Template("""\
<div class="field number">
  <label for="$name">$label</label>
  <input type="number" id="$name" name="$name" value="$value" min="$least" max="$most" step="$step"
    placeholder="$default" aria-describedby="$name-hint $name-error" autocomplete="off">
  $slider<p class="hint" id="$name-hint">$hint <span class="range">$range.</span></p>
  <p class="error" id="$name-error"></p>
</div>
""")
# Hidden from the keyboard and screen readers: they use the number field beside it.
_SLIDER = Template("""\
<input type="range" data-for="$name" value="$value" min="$least" max="$most" step="$pull"
    tabindex="-1" aria-hidden="true" autocomplete="off">
  """)


@dataclass(frozen=True)
class Page:
    """The rendered page and its ETag."""

    html: bytes
    etag: str

    @classmethod
    def render(cls) -> Page:
        texts, numbers = "", ""
        for name, field in GenerateParams.model_json_schema()["properties"].items():
            if field["type"] == "string":
                texts += _text(name, field)
            else:
                numbers += _number(name, field)
        template = Template((Path(__file__).parent / "index.html").read_text("utf-8"))
        names = {"model": MODEL, "width": WIDTH, "height": HEIGHT}
        html = template.substitute(names, texts=texts, numbers=numbers).encode()
        return cls(html, f'"{hashlib.sha256(html).hexdigest()[:32]}"')


def _text(name: str, field: dict[str, Any]) -> str:
    is_required = "default" not in field
    return _TEXT.substitute(
        **_common(name, field),
        most=field["maxLength"],
        rows=8 if is_required else 2,
        required=" required" if is_required else "",
    )


def _number(name: str, field: dict[str, Any]) -> str:
    is_whole = field["type"] == "integer"
    least, most = field["minimum"], field["maximum"]
    values = _common(name, field) | {
        "least": least,
        "most": most,
        "range": f"{least} to {_short(most)}",
        "default": field["default"],
        "step": "1" if is_whole else "any",
        "pull": "1" if is_whole else "0.1",
    }
    slider = _SLIDER.substitute(values) if most - least <= _WIDEST_SLIDER else ""
    return _NUMBER.substitute(values, slider=slider)


def _short(number: float) -> str:
    is_largest = isinstance(number, int) and number + 1 == 1 << 63
    return "2^63-1" if is_largest else str(number)


def _common(name: str, field: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "label": _LABELS.get(name) or name.replace("_", " ").capitalize(),
        "hint": escape(field["description"]),
        "value": escape(str(EXAMPLE_REQUEST.get(name, field.get("default", "")))),
    }
