"""The caption on mock videos: drawn, and read back by tests. Knows PIL, and nothing of models.

The text stands in a grid of equal cells, in the bitmap font that comes with Pillow, so that a
picture which went through H.264 can be read by comparing cells with the letters.
"""

from __future__ import annotations

import functools

from PIL import Image, ImageDraw, ImageFont

from models.params import HEIGHT, WIDTH, GenerateParams

CANVAS = (WIDTH // 2, HEIGHT // 2)
"""Width and height of a captioned picture: half a video's, so that it is doubled exactly."""

CELL_WIDTH, CELL_HEIGHT = 6, 11
MARGIN = 4
LINES = 3
COLUMNS = (CANVAS[0] - 2 * MARGIN) // CELL_WIDTH
STRIP_TOP = CANVAS[1] - 2 * MARGIN - LINES * CELL_HEIGHT
LETTERS = "".join(map(chr, range(ord(" "), ord("~") + 1)))


def caption_lines(params: GenerateParams, number: int) -> list[str]:
    """What the caption of one frame says.

    Args:
        params: of the video.
        number: of the frame, from 1 to `params.frames`.

    Returns:
        `LINES` lines of ASCII: `MOCK` with the frame's number and the fps; the seed; how the prompt
        begins. They are cut to `COLUMNS`, and other characters have become question marks.
    """
    lines = [
        f"MOCK  frame {number} of {params.frames}  {params.fps:g} fps",
        f"seed {params.seed}",
        " ".join(params.prompt.split()),
    ]
    return ["".join(c if c in LETTERS else "?" for c in line[:COLUMNS]).rstrip() for line in lines]


def draw(picture: Image.Image, lines: list[str]) -> None:
    """Draw white letters on a black strip at the bottom of a picture.

    Args:
        picture: RGB, of the size `CANVAS`; changed in place.
        lines: at most `LINES` lines of at most `COLUMNS` letters of `LETTERS`.
    """
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, STRIP_TOP, *CANVAS), fill="black")
    for row, line in enumerate(lines):
        pen.text(_corner(row, 0), line, fill="white", font=_font())


def read(picture: Image.Image) -> list[str]:
    """Read the caption of a decoded frame.

    Args:
        picture: a whole frame in any mode, of any size; a video has 848x480.

    Returns:
        `LINES` lines without white space at their ends. Where there is no caption: nonsense.
    """
    small = picture.convert("L").resize(CANVAS, Image.Resampling.BOX)
    return [
        "".join(_letter(small, row, col) for col in range(COLUMNS)).rstrip() for row in range(LINES)
    ]


def _letter(picture: Image.Image, row: int, column: int) -> str:
    """The letter that differs from a cell in the fewest pixels."""
    left, top = _corner(row, column)
    pixels = _pixels(picture.crop((left, top, left + CELL_WIDTH, top + CELL_HEIGHT)))
    shapes = _shapes()
    return shapes.get(pixels) or shapes[min(shapes, key=lambda shape: (shape ^ pixels).bit_count())]


def _corner(row: int, column: int) -> tuple[int, int]:
    return MARGIN + column * CELL_WIDTH, STRIP_TOP + MARGIN + row * CELL_HEIGHT


@functools.cache
def _font() -> ImageFont.ImageFont:
    return ImageFont.load_default_imagefont()


@functools.cache
def _shapes() -> dict[int, str]:
    """Each letter by its pixels."""
    shapes = {}
    for letter in LETTERS:
        cell = Image.new("L", (CELL_WIDTH, CELL_HEIGHT))
        ImageDraw.Draw(cell).text((0, 0), letter, fill="white", font=_font())
        shapes[_pixels(cell)] = letter
    return shapes


def _pixels(cell: Image.Image) -> int:
    """The pixels of a cell as one number: 8 bits each, all set where it is rather white."""
    return int.from_bytes(cell.point(lambda value: 255 * (value // 128)).tobytes())
