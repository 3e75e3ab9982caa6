"""Reads the caption of a mock video, by comparing its cells with the letters."""

from __future__ import annotations

import functools

from PIL import Image, ImageDraw

from models.mock.caption import (
    CANVAS,
    CELL_HEIGHT,
    CELL_WIDTH,
    COLUMNS,
    LETTERS,
    LINES,
    MARGIN,
    STRIP_TOP,
    font,
)


def read(picture: Image.Image) -> list[str]:
    """Read the caption of a decoded frame.

    Args:
        picture: a whole frame in any mode and of any size.

    Returns:
        `LINES` lines without trailing spaces. A frame without a caption gives random letters.
    """
    small = picture.convert("L").resize(CANVAS, Image.Resampling.BOX)
    return [
        "".join(_letter(small, row, col) for col in range(COLUMNS)).rstrip() for row in range(LINES)
    ]


def _letter(picture: Image.Image, row: int, column: int) -> str:
    """The letter that differs from a cell in the fewest pixels."""
    left = MARGIN + column * CELL_WIDTH
    top = STRIP_TOP + MARGIN + row * CELL_HEIGHT
    pixels = _pixels(picture.crop((left, top, left + CELL_WIDTH, top + CELL_HEIGHT)))
    shapes = _shapes()
    return shapes.get(pixels) or shapes[min(shapes, key=lambda shape: (shape ^ pixels).bit_count())]


@functools.cache
def _shapes() -> dict[int, str]:
    """The letters by their pixels."""
    shapes = {}
    for letter in LETTERS:
        cell = Image.new("L", (CELL_WIDTH, CELL_HEIGHT))
        ImageDraw.Draw(cell).text((0, 0), letter, fill="white", font=font())
        shapes[_pixels(cell)] = letter
    return shapes


def _pixels(cell: Image.Image) -> int:
    """The pixels of a cell as one number: 8 bits each, all set where a pixel is rather white."""
    return int.from_bytes(cell.point(lambda value: 255 * (value // 128)).tobytes())
