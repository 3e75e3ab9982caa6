"""Measured speed of runs, and the time that other runs will take. No Redis, no clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Self

from models.request.params import TEMPORAL_FACTOR, GenerateParams
from worker.job import Stage


@dataclass(frozen=True)
class Work:
    """The parameters that determine the length of a run on one worker."""

    latent_frames: int
    steps: int

    @classmethod
    def of(cls, params: GenerateParams, steps: int | None = None) -> Self:
        """`steps`: those that are run, if not all."""
        latent_frames = (params.model_frames - 1) // TEMPORAL_FACTOR + 1
        return cls(latent_frames, steps or params.steps)

    @classmethod
    def read(cls, text: str) -> Self:
        """From the record's field, the form of `str`."""
        latent_frames, steps = text.split()
        return cls(int(latent_frames), int(steps))

    def __str__(self) -> str:
        return f"{self.latent_frames} {self.steps}"


@dataclass(frozen=True)
class Pace:
    """Speed of runs of one number of latent frames.

    Attributes:
        prompt_seconds: before the first step.
        step_seconds: each step.
        video_seconds: from the last step until publication.
    """

    prompt_seconds: float
    step_seconds: float
    video_seconds: float

    def seconds(self, steps: int) -> float:
        """Length of a whole run."""
        return self.prompt_seconds + steps * self.step_seconds + self.video_seconds

    def seconds_left(
        self, steps: int, stage: Stage, step: int, progress: float, elapsed: float
    ) -> float:
        """Rest of a run, which does not grow within a stage.

        Args:
            steps: of the whole run.
            stage: at present.
            step: steps done.
            progress: per cent; see `progress`.
            elapsed: seconds since the run began.
        """
        match stage:
            case Stage.ENCODING_PROMPT:
                left = max(0.0, self.prompt_seconds - elapsed)
                return left + steps * self.step_seconds + self.video_seconds
            case Stage.DENOISING:
                return (steps - step) * self.step_seconds + self.video_seconds
        # By what is drawn, not by the clock: a run that was early until here is not later now.
        return min(self.video_seconds, self.seconds(steps) * (100 - progress) / 100)

    def progress(self, steps: int, step: int, drawn: float) -> int:
        """Per cent of a run's time, 0 to 99, once its prompt is encoded.

        Args:
            steps: of the whole run.
            step: steps done.
            drawn: share of the video's frames that are done, 0 to 1.
        """
        done = self.prompt_seconds + step * self.step_seconds + drawn * self.video_seconds
        return min(99, int(100 * done / (self.seconds(steps) or 1)))


USUAL = Pace(prompt_seconds=1, step_seconds=1, video_seconds=6)
"""Before the first measurement, for `progress` alone: about the shares of a GPU."""


def read_paces(kept: Iterable[tuple[str, str]], engines: Set[str]) -> dict[int, Pace]:
    """The paces that the broker keeps, by latent frames: means of all these engines.

    Args:
        kept: latent frames and engine of runs, with the milliseconds of a `Pace`.
        engines: others may be of another card, or of mock weights. Empty: all count.
    """
    found = defaultdict(list)
    for runs, means in kept:
        frames, _, engine = runs.partition(" ")
        if not engines or engine in engines:
            found[int(frames)].append([float(ms) / 1000 for ms in means.split()])
    return {frames: Pace(*map(fmean, zip(*each, strict=True))) for frames, each in found.items()}


def pace_for(latent_frames: int, measured: Mapping[int, Pace]) -> Pace | None:
    """The measured pace, or one interpolated between the nearest two; None without any.

    Beyond the shortest and longest measured it is proportional to the frames.
    """
    if not measured:
        return None
    below = max((count for count in measured if count <= latent_frames), default=min(measured))
    above = min((count for count in measured if count >= latent_frames), default=max(measured))
    if below == above:
        return _mix(measured[below], measured[below], latent_frames / below, 0.0)
    share = (latent_frames - below) / (above - below)
    return _mix(measured[below], measured[above], 1 - share, share)


def _mix(one: Pace, other: Pace, of_one: float, of_other: float) -> Pace:
    both = zip(astuple(one), astuple(other), strict=True)
    return Pace(*(of_one * first + of_other * second for first, second in both))
