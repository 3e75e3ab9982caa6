"""The words in the mock's videos, as masks: the parameters of the request, with a badge MOCK."""

from __future__ import annotations

import functools
import re
import unicodedata
from bisect import bisect_right
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from models.request.params import HEIGHT, WIDTH, GenerateParams

MARGIN = 40
BADGE = (MARGIN, 36, MARGIN + 92, 70)
PROMPT = (MARGIN, 140, WIDTH - MARGIN, 344)
BAR = (MARGIN, 430, WIDTH - MARGIN, 437)
"""Boxes: left, top, right, bottom."""
SIZES = (64, 56, 48, 42, 36, 32, 28)
"""Of the prompt's letters in pixels: the largest with which it fits, or the last."""
LINE = 1.22
"""Height of a line, in sizes of its letters."""
SMALL = 19
_NOT_IN_FONT = re.compile(r"[^ -~\u2018\u2019\u201c\u201d]+")
"""Pillow's own font has ASCII and few other characters."""


def words(params: GenerateParams, made: str, stop_after: int | None = None) -> Image.Image:
    """The words and the bar's track that all frames have, as a mask."""
    mask = Image.new("L", (WIDTH, HEIGHT))
    pen = ImageDraw.Draw(mask)
    left, top, right, bottom = BADGE
    middle = (top + bottom) / 2
    mask.paste(255, BADGE, pill(right - left, bottom - top))
    pen.text(((left + right) / 2, middle), "MOCK", 0, font(21), anchor="mm")
    pen.text((right + 14, middle), made, 200, font(SMALL), anchor="lm")
    _write_prompt(pen, params.prompt)
    draft = f"draft: {stop_after} of " if stop_after else ""
    facts = (
        f"seed {params.seed}",
        f"{draft}{params.steps} steps",
        f"guidance {params.guidance_scale:g}",
    )
    pen.text((MARGIN, 362), "   ".join(facts), 230, font(SMALL))
    if params.lora:
        loras = "   ".join(f"{name} {scale:g}" for name, scale in params.lora.items())
        loras = _shortened(loras, font(SMALL), WIDTH // 3)
        pen.text((WIDTH - MARGIN, 362), loras, 230, font(SMALL), anchor="ra")
    if params.negative_prompt.strip():
        line = f"not: {_plain(params.negative_prompt)}"
        pen.text((MARGIN, 390), _shortened(line, font(SMALL), WIDTH - 2 * MARGIN), 180, font(SMALL))
    left, top, right, bottom = BAR
    mask.paste(60, BAR, pill(right - left, bottom - top))
    return mask


def pill(width: int, height: int) -> Image.Image:
    """A mask with round ends, smooth as its four-fold size is reduced."""
    large = Image.new("L", (4 * width, 4 * height))
    box = (0, 0, 4 * width - 1, 4 * height - 1)
    ImageDraw.Draw(large).rounded_rectangle(box, 2 * height, fill=255)
    return large.reduce(4)


def _write_prompt(pen: ImageDraw.ImageDraw, prompt: str) -> None:
    left, top, right, bottom = PROMPT
    text = _plain(prompt)
    for size in SIZES:
        room = int((bottom - top) / (LINE * size))
        lines = _wrapped(text, font(size), right - left)
        if len(lines) <= room:
            break
    if len(lines) > room:
        lines[room - 1] = _shortened(f"{lines[room - 1]} {lines[room]}", font(size), right - left)
        del lines[room:]
    first = (top + bottom - len(lines) * LINE * size) / 2
    for row, line in enumerate(lines):
        pen.text((left, first + row * LINE * size), line, 255, font(size))


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_shortened(word, font, width))
    return [line for line in lines if line]


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    fitting = bisect_right(
        range(1, len(text)), float(width), key=lambda length: font.getlength(text[:length] + "…")
    )
    return text[:fitting].rstrip() + "…"


def _plain(text: str) -> str:
    """One line of characters that the font has: without accents, an ellipsis for others."""
    parts = unicodedata.normalize("NFKD", " ".join(text.split()))
    letters = "".join(c for c in parts if not unicodedata.combining(c))
    return _NOT_IN_FONT.sub("…", letters.replace("\u2013", "-").replace("\u2014", "-"))


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return cast("ImageFont.FreeTypeFont", ImageFont.load_default(size))
