"""The two stages of moderation, prompt and frames, and the interfaces of their judges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Protocol

from models.engine import Clip
from models.errors import ContentBlockedError


class PromptJudge(Protocol):
    """Judges prompts. It raises when it cannot judge, so that no prompt passes unjudged."""

    def blocks(self, prompt: str) -> str | None:
        """The category for which the prompt is blocked, as shown to clients; None lets it pass."""


class FrameJudge(Protocol):
    """Judges frames. It raises when it cannot judge, so that no frame passes unjudged."""

    def blocks(self, frame: bytes, width: int, height: int) -> str | None:
        """The category for which a frame of a `Clip` is blocked; None lets it pass."""


@dataclass(frozen=True)
class Moderation:
    """The judges that are on, if any.

    Attributes:
        prompt_judges: in the order of judging, by their names in the log.
        frame_judge: None where frames are not judged.
        frames: number of frames of a clip that are judged, 2 or more.
    """

    prompt_judges: Mapping[str, PromptJudge] = field(default_factory=dict)
    frame_judge: FrameJudge | None = None
    frames: int = 2

    def check_prompt(self, prompt: str) -> None:
        """Check a prompt before the engine works.

        Raises:
            ContentBlockedError: a judge blocks the prompt.
        """
        for judge in self.prompt_judges.values():
            category = judge.blocks(prompt)
            if category is not None:
                raise ContentBlockedError(category, "prompt")

    def moderated(self, clip: Clip, count: int, also: Set[int] = frozenset()) -> Clip:
        """The clip of `count` frames; drawing one that is blocked raises `ContentBlockedError`.

        `also`: indices of frames that are judged beside the sample.
        """
        if self.frame_judge is None:
            return clip
        chosen = sample(count, self.frames) | also
        return replace(clip, frames=self._judged(clip, chosen, self.frame_judge))

    def _judged(self, clip: Clip, chosen: Set[int], judge: FrameJudge) -> Iterator[bytes]:
        for index, frame in enumerate(clip.frames):
            if index in chosen:
                category = judge.blocks(frame, clip.width, clip.height)
                if category is not None:
                    raise ContentBlockedError(category, "frames")
            yield frame


def sample(count: int, wanted: int) -> frozenset[int]:
    """Indices of at most `wanted` of `count` frames: the first, the last, and others evenly."""
    last = count - 1
    return frozenset(round(last * index / (wanted - 1)) for index in range(wanted))
