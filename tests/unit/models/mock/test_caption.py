from __future__ import annotations

import os
from pathlib import Path

import av
import pytest
from PIL import Image

from models.engine import Clip
from models.mock.caption import CANVAS, COLUMNS, LETTERS, LINES, caption_lines, draw
from models.params import HEIGHT, WIDTH, GenerateParams
from models.video import encode
from tests.support.captions import read


def noise() -> Image.Image:
    return Image.frombytes("RGB", CANVAS, os.urandom(CANVAS[0] * CANVAS[1] * 3))


def through_h264(pictures: list[Image.Image], folder: Path) -> list[Image.Image]:
    path = folder / "video.mp4"
    encode(Clip(*CANVAS, (picture.tobytes() for picture in pictures)), 16, path)
    with av.open(path) as file:
        return [frame.to_image() for frame in file.decode(video=0)]  # type: ignore[no-untyped-call]


def test_every_letter_can_be_read_back_from_a_video(tmp_path: Path) -> None:
    # 68 columns and 95 letters: two pages hold each letter, and each letter beside others.
    pages = [[LETTERS[1 + row :][:COLUMNS], LETTERS[30 + row :][:COLUMNS], ""] for row in range(8)]
    pictures = [noise() for _ in pages]
    for picture, page in zip(pictures, pages, strict=True):
        draw(picture, page)
    decoded = through_h264(pictures, tmp_path)
    assert decoded[0].size == (WIDTH, HEIGHT)
    assert [read(picture) for picture in decoded] == pages


def test_a_caption_says_what_was_asked_for() -> None:
    params = GenerateParams(prompt="A cat", frames=160, fps=23.976, seed=2**63 - 1)
    assert caption_lines(params, 7) == [
        "MOCK  frame 7 of 160  23.976 fps",
        "seed 9223372036854775807",
        "A cat",
    ]


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        ("  two\nlines\tand   spaces ", "two lines and spaces"),
        ("une forêt, 猫", "une for?t, ?"),
        ("x" * 4000, "x" * COLUMNS),
    ],
)
def test_a_prompt_is_shown_as_one_short_line_of_ascii(prompt: str, line: str) -> None:
    assert caption_lines(GenerateParams(prompt=prompt), 1)[-1] == line


def test_the_longest_caption_fits() -> None:
    params = GenerateParams(prompt="x", frames=160, fps=29.123456789012345, seed=2**63 - 1)
    lines = caption_lines(params, 160)
    assert len(lines) == LINES
    assert max(map(len, lines)) < COLUMNS


def test_only_the_strip_is_drawn_over() -> None:
    picture = noise()
    before = picture.copy()
    draw(picture, ["MOCK"])
    above = (0, 0, CANVAS[0], 199)
    assert picture.crop(above).tobytes() == before.crop(above).tobytes()


def test_a_picture_without_a_caption_reads_as_nonsense() -> None:
    assert "MOCK" not in "".join(read(noise()))
