"""Draws the mock's videos: a backdrop, the parameters in words, and a bar for the time.

As with a model, `fps` changes no frame.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import repeat

import numpy as np
from PIL import Image, ImageDraw

from models.engine import Clip
from models.mock.backdrop import FPS, Backdrop, palette, random_of
from models.mock.words import BAR, MARGIN, SMALL, font, pill, words
from models.request.params import HEIGHT, MODEL, WIDTH, GenerateParams

INSET = (WIDTH - MARGIN - 120, 32, WIDTH - MARGIN, 104)
"""The box of an engine's own frames: left, top, right, bottom."""
COARSE = 4
OPACITY = 0.5
"""So many pixels of an engine's frame become one, half seen, as its noise would fill the file."""
PREVIEW = (WIDTH // 4, HEIGHT // 4)
QUALITY = 75
"""Of the JPEG of a preview, which has five or six kB."""


class Scene:
    """The pictures of one request."""

    def __init__(
        self, params: GenerateParams, mock: str, made: str, stop_after: int | None = None
    ) -> None:
        """Prepare what all frames share.

        Args:
            params: of the request.
            mock: name of the engine.
            made: how the pictures are made, in some words.
            stop_after: the steps of a draft.
        """
        self._params = params
        self._mock = mock
        variant = [] if params.model == MODEL else [params.model]
        colours, self._ink = palette(params)
        self._backdrop = Backdrop(params, colours)
        self._words = words(params, ", ".join([*variant, made]), stop_after)

    def clip(self, engine: Clip | None = None) -> Clip:
        """The video, with the parameters as a JSON object in its comment.

        Args:
            engine: the video that the engine has made, for the corner; its frames are drawn.
        """
        pictures = _pictures(engine) if engine else repeat(None, self._params.frames)
        frames = (self._frame(*each).tobytes() for each in enumerate(pictures))
        comment = comment_of(self._params, self._mock)
        return Clip(WIDTH, HEIGHT, frames, engine.warnings if engine else (), comment)

    def preview(self, step: int) -> bytes:
        """A small JPEG of the middle frame, which forms out of noise from step to step."""
        share = step / self._params.steps
        picture = self._frame(self._params.frames // 2)
        width, height = (max(4, round(side * share**2)) for side in PREVIEW)
        picture = picture.resize((width, height), Image.Resampling.BOX).resize(PREVIEW)
        noise = random_of(self._params, f"noise {step}").normal(128, 60, (30, 53, 3)).clip(0, 255)
        grain = Image.fromarray(noise.astype(np.uint8)).resize(PREVIEW)
        file = io.BytesIO()
        Image.blend(picture, grain, 0.8 * (1 - share)).save(file, "JPEG", quality=QUALITY)
        return file.getvalue()

    def _frame(self, index: int, engine: Image.Image | None = None) -> Image.Image:
        picture = self._backdrop.at(index / FPS)
        if engine is not None:
            picture.paste(Image.blend(picture.crop(INSET), engine, OPACITY), INSET)
        picture.paste(self._ink, mask=self._words)
        self._draw_time(picture, index)
        return picture

    def _draw_time(self, picture: Image.Image, index: int) -> None:
        pen = ImageDraw.Draw(picture)
        left, top, right, bottom = BAR
        number, count = index + 1, self._params.frames
        done = max(bottom - top, round((right - left) * number / count))
        picture.paste(self._ink, (left, top), pill(done, bottom - top))
        pen.text((left, bottom + 9), f"frame {number} of {count}", self._ink, font(SMALL))


def comment_of(params: GenerateParams, mock: str) -> str:
    """A JSON object of the parameters, for the metadata of a file. `mock`: name of the engine."""
    variant = {} if params.model == MODEL else {"model": params.model}
    return json.dumps({"mock": mock} | variant | params.model_dump(), ensure_ascii=False)


def _pictures(clip: Clip) -> Iterator[Image.Image]:
    """The frames of an engine, for the corner."""
    size = (INSET[2] - INSET[0], INSET[3] - INSET[1])
    for frame in clip.frames:
        picture = Image.frombytes("RGB", (clip.width, clip.height), frame)
        yield picture.reduce(COARSE).resize(size, Image.Resampling.NEAREST)
