"""Draws the caption on mock videos.

The text fills a grid of equal cells in Pillow's bitmap font, so that tests can read it from an
encoded video.
"""

from __future__ import annotations

import functools

from PIL import Image, ImageDraw, ImageFont

from models.params import HEIGHT, WIDTH, GenerateParams

CANVAS = (WIDTH // 2, HEIGHT // 2)
"""Width and height of a captioned picture: half of a video's, which doubles it exactly."""

CELL_WIDTH, CELL_HEIGHT = 6, 11
MARGIN = 4
LINES = 3
COLUMNS = (CANVAS[0] - 2 * MARGIN) // CELL_WIDTH
STRIP_TOP = CANVAS[1] - 2 * MARGIN - LINES * CELL_HEIGHT
LETTERS = "".join(map(chr, range(ord(" "), ord("~") + 1)))


def caption_lines(params: GenerateParams, number: int) -> list[str]:
    """The caption of a frame.

    Args:
        params: of the video.
        number: of the frame, from 1 to `params.frames`.

    Returns:
        `LINES` lines: `MOCK` with the frame's number and the fps; the seed; the start of the
        prompt. They are cut to `COLUMNS`; characters beyond ASCII are question marks.
    """
    lines = [
        f"MOCK  frame {number} of {params.frames}  {params.fps:g} fps",
        f"seed {params.seed}",
        " ".join(params.prompt.split()),
    ]
    return ["".join(c if c in LETTERS else "?" for c in line[:COLUMNS]).rstrip() for line in lines]


def draw(picture: Image.Image, lines: list[str]) -> None:
    """Draw white letters on a black strip at the bottom of a picture, in place.

    Args:
        picture: RGB, of the size `CANVAS`.
        lines: at most `LINES` lines of at most `COLUMNS` letters of `LETTERS`.
    """
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, STRIP_TOP, *CANVAS), fill="black")
    for row, line in enumerate(lines):
        pen.text((MARGIN, STRIP_TOP + MARGIN + row * CELL_HEIGHT), line, fill="white", font=font())


@functools.cache
def font() -> ImageFont.ImageFont:
    return ImageFont.load_default_imagefont()
