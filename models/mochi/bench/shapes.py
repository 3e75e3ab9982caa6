"""Shapes of the tensors of a request."""

from __future__ import annotations

from dataclasses import dataclass

from models.mochi.engine import LATENT_CHANNELS, SPATIAL_FACTOR
from models.request.params import HEIGHT, TEMPORAL_FACTOR, WIDTH


@dataclass(frozen=True)
class Request:
    """A request as the model sees it.

    Attributes:
        frames: rounded up to the next 6k + 1, a whole number of latent frames.
        tokens: of the prompt, 3 or more; the negative prompt is empty.
        steps: of denoising.
        size: of a frame: width and height in pixels.
    """

    frames: int = 49
    tokens: int = 60
    steps: int = 30
    size: tuple[int, int] = (WIDTH, HEIGHT)

    @property
    def latent_frames(self) -> int:
        return -(-(self.frames - 1) // TEMPORAL_FACTOR) + 1

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """`(1, channels, T, h, w)`."""
        width, height = (length // SPATIAL_FACTOR for length in self.size)
        return (1, LATENT_CHANNELS, self.latent_frames, height, width)

    @property
    def visual_tokens(self) -> int:
        """Patches of 2x2 latents."""
        _, _, frames, height, width = self.latent_shape
        return frames * (height // 2) * (width // 2)
