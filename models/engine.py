"""The one interface that everything above the models relies on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from models.params import GenerateParams

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all): with 0 when the prompt is encoded and the denoising
begins, and after each step.

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
        is_mock: it holds no real weights: whoever asks it is testing something else.
    """

    model: str
    device: str
    precision: str
    profile: str = ""
    lossy: tuple[str, ...] = ()
    is_mock: bool = False

    def __str__(self) -> str:
        named = (self.model, self.device, self.precision, self.profile)
        lossy = (f"lossy: {name}" for name in self.lossy)
        return ", ".join(filter(None, (*named, *lossy)))


class Checkpoints(Protocol):
    """Where the state of one request is kept between steps, for a later run of it to go on from.

    The bytes are the engine's own affair. No method raises for a storage that fails: what cannot be
    kept or read is simply not there.
    """

    @property
    def every(self) -> int:
        """Steps from one to the next, 1 or more. None is kept after the last step."""
        ...

    def load(self) -> bytes | None:
        """What an earlier run of the request has kept, or another one, or nobody: not checked."""
        ...

    def resumed(self, step: int) -> None:
        """Told before the first step that this run goes on after `step` of them."""
        ...

    def save(self, data: bytes) -> None:
        """Keep the state after the step that was reported last, in place of the one before."""
        ...


@dataclass(frozen=True)
class Picture:
    """A small picture of a video that is not ready.

    Attributes:
        step: after which it looked like that.
        media_type: of `data`.
        data: a file as a browser shows it, of some kB.
    """

    step: int
    media_type: str
    data: bytes


class Previews(Protocol):
    """Who looks on. Nobody has judged what is to be seen: it is not for those who moderate."""

    @property
    def every(self) -> int:
        """Steps from one picture to the next, 1 or more. There is none after the last step."""
        ...

    def show(self, picture: Picture) -> None:
        """Take it, at once. It may come a step or two late, and never raises."""
        ...


class Engine(Protocol):
    """Turns parameters into frames. Holds its weights for the whole life of the process."""

    @property
    def traits(self) -> Traits:
        """What runs where."""
        ...

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
    ) -> Clip:
        """Run the denoising loop and return the frames, which may still be decoded lazily.

        Drawing the frames may raise the same errors. One clip at a time: the frames of the one
        before are void.

        The same parameters on the same machine give the same bytes.

        Args:
            params: validated parameters; `seed` is never -1 here.
            on_step: see `OnStep`.
            checkpoints: where to go on, with the same frames as if from the start, and where to
                keep what a later run may go on from. What does not fit is passed over. None: all
                steps are done, and nothing is kept.
            previews: who is shown what the video looks like so far; None: nobody.

        Raises:
            EngineBrokenError: the worker must end; the request may succeed in another process.
            EngineError: the generation failed; the worker can go on with the next request.
        """
        ...
