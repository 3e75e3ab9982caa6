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
        warnings: sentences for the client about what he gets, such as a prompt that was cut.
    """

    width: int
    height: int
    frames: Iterator[bytes]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Traits:
    """What an engine is, for logs, `/version` and results.

    Attributes:
        model: which weights, such as `Mochi 1` or `mock weights`.
        device: name of the card, or `CPU`.
        precision: `reference` or `bf16`; for mock weights `float32`; for pictures without a model
            `none`.
        profile: what stays in GPU memory; `` on a CPU.
        lossy: names of the speed modes that change the pictures, none by default.
    """

    model: str
    device: str
    precision: str
    profile: str = ""
    lossy: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = (self.model, self.device, self.precision, self.profile)
        lossy = (f"lossy: {name}" for name in self.lossy)
        return ", ".join(filter(None, (*named, *lossy)))


class Engine(Protocol):
    """Turns parameters into frames. Holds its weights for the whole life of the process."""

    @property
    def traits(self) -> Traits:
        """What runs where."""
        ...

    def generate(self, params: GenerateParams, on_step: OnStep) -> Clip:
        """Run the denoising loop and return the frames, which may still be decoded lazily.

        Drawing the frames may raise the same errors. One clip at a time: the frames of the one
        before are void.

        The same parameters on the same machine give the same bytes.

        Args:
            params: validated parameters; `seed` is never -1 here.
            on_step: see `OnStep`.

        Raises:
            EngineBrokenError: the worker must end; the request may succeed in another process.
            EngineError: the generation failed; the worker can go on with the next request.
        """
        ...
