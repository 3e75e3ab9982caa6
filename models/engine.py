"""The one interface that everything above the models relies on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from models.params import GenerateParams

OnStep = Callable[[int, int], None]
"""Called after each denoising step with (steps done, steps in all).

It may raise, to abandon the generation: an engine lets the exception through untouched.
"""


@dataclass(frozen=True)
class Clip:
    """A video that is not encoded yet.

    Attributes:
        width: pixels in a row.
        height: rows in a frame.
        frames: yields exactly as many frames as were asked for, each `width * height * 3` bytes:
            RGB, 8 bits a channel, rows from the top, no padding.
    """

    width: int
    height: int
    frames: Iterator[bytes]


class Engine(Protocol):
    """Turns parameters into frames. Holds its weights for the whole life of the process."""

    @property
    def description(self) -> str:
        """What runs where, in one line for logs."""
        ...

    def generate(self, params: GenerateParams, on_step: OnStep) -> Clip:
        """Run the denoising loop and return the frames, which may still be decoded lazily.

        The same parameters on the same machine give the same bytes.

        Args:
            params: validated parameters; `seed` is never -1 here.
            on_step: see `OnStep`.

        Raises:
            EngineBrokenError: the worker must end; the request may succeed in another process.
            EngineError: the generation failed; the worker can go on with the next request.
        """
        ...
