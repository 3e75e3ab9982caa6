"""The page at `/`: renders its form from the parameters of the model.

`index.html` is a template, so that ranges and defaults stand only in `models/request/params.py` and
`models/request/catalogue.py`. The scripts in `assets` call the API as any client does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from models.mock.scenario import SCENARIO
from models.request.catalogue import CATALOGUE, Model
from models.request.example import EXAMPLE_REQUEST, SHORT_PROMPTS
from models.request.params import HEIGHT, MODEL, WIDTH, RequestParams, shown
from server.page.files import etag_of

_LABELS = {"fps": "Frame rate", "guidance_scale": "Guidance", "format": "Output"}
"""Labels for parameters whose names are unclear or long."""
_CHOICES = {"mp4": "MP4", "webm": "WebM", "gif": "GIF"}
_WIDEST_SLIDER = 1000
"""Parameters with a wider range have a button that draws a value, and no slider."""
SCENARIOS = {
    "": "Success",
    "slow:10": "Success after 10 seconds",
    "expire:30": "Success, expires after 30 seconds",
    "blocked": "Blocked by moderation",
    "fail": "Engine failure",
    "out_of_memory": "Out of memory",
    "crash": "Worker crash",
    "late_validation": "Late validation error",
    "payment_required": "Too few credits (402)",
}
"""Mock scenarios of the page's picker, each with its outcome."""

_TEXT = Template("""\
<div class="field">
  <label for="$name">$label</label>
  <textarea id="$name" name="$name" rows="$rows" data-most="$most"
    aria-describedby="$name-hint $name-error"$required>
$value</textarea>
$examples  <p class="hint" id="$name-hint"><span>$hint</span>
    <span class="count" id="$name-count"></span></p>
  <p class="error" id="$name-error"></p>
</div>
""")
_NUMBER = Template("""\
<div class="field number">
  <label for="$name">$label</label>
  <input type="number" id="$name" name="$name" value="$value" min="$least" max="$most" step="$step"
    placeholder="$default" aria-describedby="$name-hint $name-error" autocomplete="off">
  $control<p class="hint" id="$name-hint">$hint <span class="range">$range.</span></p>
  <p class="error" id="$name-error"></p>
</div>
""")
# Hidden from the keyboard and screen readers: they use the number field beside it.
_SLIDER = Template("""\
<input type="range" data-for="$name" value="$value" min="$least" max="$most" step="$pull"
    tabindex="-1" aria-hidden="true" autocomplete="off">
  """)
_DIE = Template("""\
<button type="button" class="die" data-draw="$name" title="Draw a value">
    <svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true"><path d="M8 8h0
      M16 8h0M12 12h0M8 16h0M16 16h0
      M7 3h10a4 4 0 0 1 4 4v10a4 4 0 0 1-4 4H7a4 4 0 0 1-4-4V7a4 4 0 0 1 4-4z"/></svg>
    <span class="unseen">Draw a $name</span>
  </button>
  """)
_SELECT = Template("""\
<div class="field">
  <label for="$name">$label</label>
  <select id="$name" name="$name" aria-describedby="$name-hint $name-error">
$options  </select>
  <p class="hint" id="$name-hint">$hint</p>
  <p class="error" id="$name-error"></p>
</div>
""")
_TICK = Template("""\
<div class="field tick">
  <input type="checkbox" id="$name" name="$name" value="true"
    aria-describedby="$name-hint $name-error" autocomplete="off">
  <label for="$name">$label</label>
  <p class="hint" id="$name-hint">$hint</p>
  <p class="error" id="$name-error"></p>
</div>
""")
_EXAMPLE = Template("""\
<button type="button" class="chip" data-fill="$values">$name</button>
""")


@dataclass(frozen=True)
class Page:
    """The rendered page and its ETag."""

    html: bytes
    etag: str

    @classmethod
    def render(cls) -> Page:
        texts, numbers, outputs = "", "", ""
        for name, field in RequestParams.model_json_schema()["properties"].items():
            if "anyOf" in field:
                continue  # the choice of a LoRA: its names are those of the workers
            if "enum" in field:
                outputs += _SELECT.substitute(_common(name, field), options=_options(field))
            elif field["type"] == "boolean":
                outputs += _TICK.substitute(_common(name, field))
            elif field["type"] == "string":
                texts += _text(name, field)
            else:
                numbers += _number(name, field)
        template = Template((Path(__file__).parent / "index.html").read_text("utf-8"))
        names = {"model": MODEL, "width": WIDTH, "height": HEIGHT}
        parts = {
            "models": "".join(map(_model, CATALOGUE.values())),
            "texts": texts,
            "numbers": numbers,
            "outputs": outputs,
            "scenario": SCENARIO,
            "scenarios": _scenarios(),
        }
        html = template.substitute(names, **parts).encode()
        return cls(html, etag_of(html))


def _text(name: str, field: dict[str, Any]) -> str:
    is_required = "default" not in field
    return _TEXT.substitute(
        **_common(name, field),
        most=field["maxLength"],
        rows=3 if is_required else 1,
        required=" required" if is_required else "",
        examples=_examples() if is_required else "",
    )


def _examples() -> str:
    """Buttons that fill the form."""
    requests = {
        name: {"prompt": text, "negative_prompt": ""} for name, text in SHORT_PROMPTS.items()
    }
    buttons = "".join(
        _EXAMPLE.substitute(name=name, values=escape(json.dumps(request)))
        for name, request in (requests | {"Hosted example": EXAMPLE_REQUEST}).items()
    )
    return f'  <div class="examples" role="group" aria-label="Examples">\n{buttons}  </div>\n'


def _model(model: Model) -> str:
    """The choice of a model, with the ranges and defaults of its numbers."""
    fields = model.parameters.model_json_schema()["properties"]
    numbers = {
        name: {
            "least": str(field["minimum"]),
            "most": str(field["maximum"]),
            "range": f"{shown(field['minimum'])} to {shown(field['maximum'])}",
            "value": str(field["default"]),
        }
        for name, field in fields.items()
        if "minimum" in field
    }
    data = escape(json.dumps(numbers))
    return f'      <option value="{model.slug}" data-numbers="{data}">{model.title}</option>\n'


def _scenarios() -> str:
    return "".join(
        f'      <option value="{value}">{escape(outcome)}</option>\n'
        for value, outcome in SCENARIOS.items()
    )


def _options(field: dict[str, Any]) -> str:
    """The default one has no value, so that the form does not send it."""
    return "".join(
        f'    <option value="{"" if value == field["default"] else value}">'
        f"{_CHOICES[value]}</option>\n"
        for value in field["enum"]
    )


def _number(name: str, field: dict[str, Any]) -> str:
    is_whole = field["type"] == "integer"
    least, most = field["minimum"], field["maximum"]
    values = _common(name, field) | {
        "least": least,
        "most": most,
        "range": f"{shown(least)} to {shown(most)}",
        "default": field["default"],
        "step": "1" if is_whole else "any",
        "pull": "1" if is_whole else "0.1",
    }
    control = _SLIDER if most - least <= _WIDEST_SLIDER else _DIE
    return _NUMBER.substitute(values, control=control.substitute(values))


def _common(name: str, field: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "label": _LABELS.get(name) or name.replace("_", " ").capitalize(),
        "hint": escape(field["description"]),
        "value": escape(str(field.get("default", next(iter(SHORT_PROMPTS.values()))))),
    }
