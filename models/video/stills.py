"""Pictures of a video as files of their own, taken while its frames pass to the encoder."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

from PIL import Image

from models.engine import Clip
from models.request.params import HEIGHT, WIDTH, FileParams, Still

QUALITY = 92
"""Of the JPEG. With colours at full resolution, as a last frame may start another video."""


@dataclass(frozen=True)
class Stills:
    """The stills of one video.

    Attributes:
        places: index of the frame of each.
        taken: JPEG of each, 848x480, once its frame has passed. The same frame gives the same
            bytes.
    """

    places: dict[Still, int]
    taken: dict[Still, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, files: FileParams, count: int) -> Self:
        """Those that a request asks for, of `count` frames.

        A poster shows the middle: the first and the last frames of a video are its least typical.
        """
        places: dict[Still, int] = {"poster": count // 2, "last_frame": count - 1}
        return cls({still: index for still, index in places.items() if getattr(files, still)})

    def watching(self, clip: Clip) -> Clip:
        """The same clip, from whose frames the stills are taken when they are drawn."""
        return replace(clip, frames=self._frames(clip)) if self.places else clip

    def _frames(self, clip: Clip) -> Iterator[bytes]:
        for index, frame in enumerate(clip.frames):
            for still, place in self.places.items():
                if place == index:
                    self.taken[still] = _jpeg(frame, clip.width, clip.height)
            yield frame


def _jpeg(frame: bytes, width: int, height: int) -> bytes:
    picture = Image.frombytes("RGB", (width, height), frame)
    if picture.size != (WIDTH, HEIGHT):
        picture = picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()
