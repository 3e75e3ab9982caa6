"""The interface between engines and the layers above."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from models.errors import EngineError
from models.request.params import GenerateParams

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps of this run): with 0 when the prompt is encoded and the denoising
begins, and after each step.

It may raise to abandon the generation. An engine passes the exception on.
"""


EncodeAhead = Callable[[GenerateParams], object]
"""Encodes the texts of a later request, so that `Engine.generate` need not: from another thread,
during `generate`. It changes no video. Whatever it raises may be ignored.
"""


@dataclass(frozen=True)
class Clip:
    """A video before encoding.

    Attributes:
        width: pixels in a row.
        height: rows in a frame.
        frames: yields the requested number of frames, each `width * height * 3` bytes: RGB, 8 bits
            per channel, rows from the top, no padding.
        warnings: messages for the client about the video, such as a truncated prompt.
        comment: text for the file's metadata, on one line; empty for none.
        description: likewise; players show it.
    """

    width: int
    height: int
    frames: Iterator[bytes]
    warnings: tuple[str, ...] = ()
    comment: str = ""
    description: str = ""


@dataclass(frozen=True)
class Traits:
    """Description of an engine for logs, `/version` and results.

    Attributes:
        model: the weights, such as `Mochi 1` or `mock weights`, or `light mock`.
        device: name of the card, or `CPU`.
        precision: `reference` or `bf16`; `float32` for mock weights; `none` without a model.
        profile: the memory profile; empty on a CPU.
        lossy: speed modes that change the pictures, none by default.
        is_mock: whether the engine has no real weights and serves tests.
        gpus: cards that share each video; on a CPU, processes.
        loras: those that requests may name; each with a digest of its numbers.
    """

    model: str
    device: str
    precision: str
    profile: str = ""
    lossy: tuple[str, ...] = ()
    is_mock: bool = False
    gpus: int = 1
    loras: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)

    def check_loras(self, params: GenerateParams) -> None:
        """Raise EngineError if the engine lacks a LoRA that a request asks for."""
        for name in params.lora or {}:
            if name not in self.loras:
                raise EngineError(f"This worker has no LoRA `{name}`.")

    def __str__(self) -> str:
        precision = self.precision.removeprefix("none")  # as without a model
        device = self.device if self.gpus == 1 else f"{self.gpus} x {self.device}"
        named = (self.model, device, precision, self.profile)
        lossy = (f"lossy: {name}" for name in self.lossy)
        return ", ".join(filter(None, (*named, *lossy)))


class Checkpoints(Protocol):
    """Storage for the state of one request between steps, from which a later run resumes.

    Only the engine reads the bytes. No method raises when the storage fails: a state that cannot be
    saved or read is treated as missing.
    """

    @property
    def every(self) -> int:
        """Steps between checkpoints; see `is_checkpoint_due`. 0 for none on the way."""
        ...

    def load(self) -> bytes | None:
        """The state that a run has saved, if any. The engine checks that it fits the request."""
        ...

    def resumed(self, step: int) -> None:
        """Note, before the first step, that this run resumes after `step` steps."""
        ...

    def save(self, data: bytes) -> None:
        """Replace the state by the one after the step that `OnStep` was last called with."""
        ...


def is_checkpoint_due(step: int, steps: int, every: int, stop_after: int | None = None) -> bool:
    """Whether an engine saves a checkpoint after a step: every so many, and after a draft's last.

    None after the last of all steps, from which no run resumes.
    """
    return step < steps and (step == stop_after or (every > 0 and step % every == 0))


@dataclass(frozen=True)
class Picture:
    """A small preview picture of an unfinished video.

    Attributes:
        step: steps done.
        media_type: of `data`.
        data: a file of some kB that a browser shows.
    """

    step: int
    media_type: str
    data: bytes


class Previews(Protocol):
    """Receives preview pictures. Moderation does not check them."""

    @property
    def every(self) -> int:
        """Steps between pictures, 1 or more. There is none after the last step."""
        ...

    def show(self, picture: Picture) -> None:
        """Accept a picture without waiting or raising. It may come a step or two late."""
        ...


class Engine(Protocol):
    """Turns parameters into frames. Holds its weights as long as the process lives."""

    @property
    def traits(self) -> Traits:
        """Model, device and precision."""
        ...

    @property
    def origin(self) -> str:
        """Weights, options and versions: what frames depend on besides the request and `traits`."""
        ...

    @property
    def encode_ahead(self) -> EncodeAhead | None:
        """None where it would take time of the card that `generate` works on."""
        ...

    def comment(self, params: GenerateParams) -> str:
        """The comment of the clip that `generate` would return."""
        ...

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
        stop_after: int | None = None,
    ) -> Clip:
        """Run the denoising loop and return the frames, which may be decoded while they are drawn.

        Drawing the frames may raise the same errors. A call invalidates the frames of the clip
        before. The same parameters on the same machine give the same bytes.

        Args:
            params: validated parameters; `seed` is not -1.
            on_step: see `OnStep`.
            checkpoints: to resume from, with the same frames as a run from the start, and to save
                to. A state that does not fit is ignored. None runs all steps and saves nothing.
            previews: receives preview pictures; None for none.
            stop_after: make a draft: run only the first so many of `params.steps`, 1 or more and
                fewer than all, and return an estimate of the video. A run without it resumes from
                the draft's last checkpoint, if the engine can save one. None runs all steps.

        Raises:
            EngineBrokenError: the worker must end; the request may succeed in another process.
            EngineError: the generation failed; the worker can go on with the next request.
        """
        ...


@dataclass(frozen=True)
class DeviceUse:
    """The use of a card at one moment.

    Attributes:
        device: like `cuda:1`, as this process numbers its cards.
        total_bytes: memory of the card.
        used_bytes: by all processes; None without `nvidia-ml-py`.
        busy: utilisation by all processes, 0 to 1; None without `nvidia-ml-py`.
        allocated_bytes: of tensors of this process; None for a card of another process.
        reserved_bytes: memory that this process holds, including those; None likewise.
    """

    device: str
    total_bytes: int
    used_bytes: int | None = None
    busy: float | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


Meter = Callable[[], Sequence[DeviceUse]]
"""Reads the use of all cards that share a video, from any thread. That of this process is first."""


EnergyCounter = Callable[[], float | None]
"""Reads how many joules all cards that share a video have used since a moment in the past, from any
thread. None where one of them does not tell. It does not raise."""
