"""How long a card would take for a step, so that mock weights can take as long. All estimated."""

from __future__ import annotations

from dataclasses import dataclass

from models.params import TEMPORAL_FACTOR, GenerateParams

PEAK_TFLOPS = {"h100": 989.0, "h200": 989.0, "a100": 312.0, "l40s": 362.0, "4090": 165.0}
"""Of dense products in bfloat16, as the makers state them."""
SUSTAINED = 0.6
"""Of the peak; published engines reach 50 to 65 per cent on Mochi. Not measured by us."""
INSTANT = "instant"
FORM = rf"^({INSTANT}|({'|'.join(PEAK_TFLOPS)})(/[1-9][0-9]{{0,3}})?)$"

TOKENS_PER_LATENT_FRAME = 1590
TEXT_TOKENS = 256
BLOCKS, WIDTH = 48, 3072
SAMPLES = 2
"""In each step: away from the negative prompt, and towards the prompt."""


@dataclass(frozen=True)
class MockSpeed:
    """A card, and how many times faster than it.

    Attributes:
        tflops: sustained; None takes no time at all.
    """

    tflops: float | None = None

    @classmethod
    def parse(cls, text: str) -> MockSpeed:
        """Read the setting, whose form has been checked."""
        card, _, times = text.partition("/")
        if card == INSTANT:
            return cls()
        return cls(PEAK_TFLOPS[card] * SUSTAINED * int(times or 1))

    def step_seconds(self, params: GenerateParams) -> float:
        """Of one denoising step."""
        if self.tflops is None:
            return 0.0
        return SAMPLES * forward_tflop(params) / self.tflops


AT_ONCE = MockSpeed()


def forward_tflop(params: GenerateParams) -> float:
    """Of one pass through the transformer, at 848x480: linear layers, attention, text."""
    latent_frames = (params.model_frames - 1) // TEMPORAL_FACTOR + 1
    tokens = TOKENS_PER_LATENT_FRAME * latent_frames
    attention = 4 * (tokens + TEXT_TOKENS) ** 2 * WIDTH * BLOCKS / 1e12
    return 0.01087 * tokens + attention + 0.9
