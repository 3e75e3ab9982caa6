"""Estimates time and energy of a card for a step, so that mock weights can take as long."""

from __future__ import annotations

from dataclasses import dataclass

from models.request.params import TEMPORAL_FACTOR, GenerateParams

PEAK_TFLOPS = {"h100": 989.0, "h200": 989.0, "a100": 312.0, "l40s": 362.0, "4090": 165.0}
"""Of dense products in bfloat16, by the data sheets."""
WATTS = {"h100": 700.0, "h200": 700.0, "a100": 400.0, "l40s": 350.0, "4090": 450.0}
"""Power limits by the data sheets, of the SXM form where there is one."""
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
    """The speed and the energy of a simulated card, or of several that share a video.

    Attributes:
        tflops: sustained TFLOP/s; None takes no time.
        tflop_joules: for each TFLOP, at full power; None: not simulated.
    """

    tflops: float | None = None
    tflop_joules: float | None = None

    @classmethod
    def parse(cls, text: str, gpus: int = 1) -> MockSpeed:
        """Parse the setting, which matches `FORM`, for as many GPUs that share a video."""
        card, _, times = text.partition("/")
        if card == INSTANT:
            return cls()
        tflops = PEAK_TFLOPS[card] * SUSTAINED * SPEEDUPS[gpus]
        return cls(tflops * int(times or 1), WATTS[card] * gpus / tflops)

    def step_seconds(self, params: GenerateParams) -> float:
        if self.tflops is None:
            return 0.0
        return SAMPLES * forward_tflop(params) / self.tflops

    def step_joules(self, params: GenerateParams) -> float | None:
        """Of the real card: a simulation sixty times faster uses no less."""
        if self.tflop_joules is None:
            return None
        return SAMPLES * forward_tflop(params) * self.tflop_joules


AT_ONCE = MockSpeed()


def forward_tflop(params: GenerateParams) -> float:
    """Work of one pass through the transformer at 848x480: linear layers, attention, text."""
    latent_frames = (params.model_frames - 1) // TEMPORAL_FACTOR + 1
    tokens = TOKENS_PER_LATENT_FRAME * latent_frames
    attention = 4 * (tokens + TEXT_TOKENS) ** 2 * WIDTH * BLOCKS / 1e12
    return 0.01087 * tokens + attention + 0.9
