"""Example requests for the page, the OpenAPI document, the demo and the tests."""

from __future__ import annotations

from typing import Final

SHORT_PROMPTS: Final = {
    "Paper boat": "A paper boat drifts down a rainy street at night, neon lights in the puddles",
    "Fox in snow": "A fox trots through fresh snow at dawn, slow motion, soft golden light",
}
"""Prompts of our own, by a short name."""

EXAMPLE_REQUEST: Final[dict[str, str | int | float]] = {
    "prompt": (
        "Create a short, looped animation of a small, fluffy creature with big, round eyes and "
        "soft fur, similar to a baby Pikachu, emulating the adorable curiosity of baby animals. "
        "The creature should be sitting in a human hand, surrounded by a soft, natural forest "
        "setting with tiny flowers and gentle lighting. Subtle, lifelike movements include slight "
        "head tilts, gentle blinking, and small, curious paw or ear twitches. Its large eyes "
        "should glimmer with curiosity and warmth, occasionally widening as it looks around its "
        "environment, embodying the innocent curiosity and playfulness of a young animal. Keep "
        "the lighting soft, creating a warm, inviting atmosphere with faint sunlight filtering "
        "through, highlighting the softness of its fur."
    ),
    "negative_prompt": "blurry, low quality, distorted wings",
    "guidance_scale": 4.5,
    "fps": 16,
    "steps": 30,
    "seed": 985521,
    "frames": 52,
}
"""Of the hosted endpoint's API page (segmind.com/models/mochi-1/api), verbatim."""
