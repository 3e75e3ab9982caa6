"""Estimates how long a card takes for a step, so that mock weights can take as long."""

from __future__ import annotations

from dataclasses import dataclass

from models.params import TEMPORAL_FACTOR, GenerateParams

PEAK_TFLOPS = {"h100": 989.0, "h200": 989.0, "a100": 312.0, "l40s": 362.0, "4090": 165.0}
"""Of dense products in bfloat16, by the data sheets."""
SUSTAINED = 0.6
"""Share of the peak. Published engines reach 0.5 to 0.65 on Mochi; this one is not measured."""
SPEEDUPS = {1: 1.0, 2: 2.0, 4: 3.8, 6: 5.5, 8: 7.2}
"""By GPUs that share a video: docs/operate/performance.md's estimate for 49 frames and NVLink 4."""
INSTANT = "instant"
FORM = rf"^({INSTANT}|({'|'.join(PEAK_TFLOPS)})(/[1-9][0-9]{{0,3}})?)$"

TOKENS_PER_LATENT_FRAME = 1590
TEXT_TOKENS = 256
BLOCKS, WIDTH = 48, 3072
SAMPLES = 2
"""Passes per step: one for the negative prompt, one for the prompt."""


@dataclass(frozen=True)
class MockSpeed:
    """The simulated speed, in sustained TFLOP/s; None takes no time."""

    tflops: float | None = None

    @classmethod
    def parse(cls, text: str, gpus: int = 1) -> MockSpeed:
        """Parse the setting, which matches `FORM`, for as many GPUs that share a video."""
        card, _, times = text.partition("/")
        if card == INSTANT:
            return cls()
        return cls(PEAK_TFLOPS[card] * SUSTAINED * SPEEDUPS[gpus] * int(times or 1))

    def step_seconds(self, params: GenerateParams) -> float:
        if self.tflops is None:
            return 0.0
        return SAMPLES * forward_tflop(params) / self.tflops


AT_ONCE = MockSpeed()


def forward_tflop(params: GenerateParams) -> float:
    """Work of one pass through the transformer at 848x480: linear layers, attention, text."""
    latent_frames = (params.model_frames - 1) // TEMPORAL_FACTOR + 1
    tokens = TOKENS_PER_LATENT_FRAME * latent_frames
    attention = 4 * (tokens + TEXT_TOKENS) ** 2 * WIDTH * BLOCKS / 1e12
    return 0.01087 * tokens + attention + 0.9
