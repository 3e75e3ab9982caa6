"""The two stages, and what judges at each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from models.engine import Clip
from models.errors import ContentBlockedError


class PromptJudge(Protocol):
    """Judges prompts. It raises when it cannot: nothing passes unjudged."""

    def blocks(self, prompt: str) -> str | None:
        """The category for which it blocks a prompt, in words that a client may read."""


class FrameJudge(Protocol):
    """Judges frames. It raises when it cannot: nothing passes unjudged."""

    def blocks(self, frame: bytes, width: int, height: int) -> str | None:
        """The category for which it blocks a frame, whose bytes are as a `Clip` has them."""


@dataclass(frozen=True)
class Moderation:
    """What is on, which may be nothing.

    Attributes:
        prompt_judges: by a name for the log, in the order in which they are asked.
        frame_judge: None where frames are not judged.
        frames: how many of a clip are, 2 or more.
    """

    prompt_judges: Mapping[str, PromptJudge] = field(default_factory=dict)
    frame_judge: FrameJudge | None = None
    frames: int = 2

    def check_prompt(self, prompt: str) -> None:
        """To be called before the engine works.

        Raises:
            ContentBlockedError: it may not be drawn.
        """
        for judge in self.prompt_judges.values():
            category = judge.blocks(prompt)
            if category is not None:
                raise ContentBlockedError(category, "prompt")

    def watched(self, clip: Clip, count: int) -> Clip:
        """The clip, whose frames raise `ContentBlockedError` when one may not be published.

        Args:
            clip: as the engine gave it.
            count: of its frames.
        """
        if self.frame_judge is None:
            return clip
        return replace(clip, frames=self._judged(clip, count, self.frame_judge))

    def _judged(self, clip: Clip, count: int, judge: FrameJudge) -> Iterator[bytes]:
        chosen = sample(count, self.frames)
        for index, frame in enumerate(clip.frames):
            if index in chosen:
                category = judge.blocks(frame, clip.width, clip.height)
                if category is not None:
                    raise ContentBlockedError(category, "frames")
            yield frame


def sample(count: int, wanted: int) -> frozenset[int]:
    """Indices of at most `wanted` of `count` frames: the first, the last, and evenly between."""
    last = count - 1
    return frozenset(round(last * index / (wanted - 1)) for index in range(wanted))
