"""Records the moving picture of the page for the documents: what `scripts/screenshots` runs."""

from __future__ import annotations

import io
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageChops
from playwright.sync_api import Page, expect

from tests.support.stack import Stack
from tests.support.visitor import Visitor, chromium, visit

PICTURE = Path(__file__).parents[1] / "docs" / "page.webp"
SIZE = {"width": 1120, "height": 720}
SHOWN_WIDTH = 900
QUALITY = 60
LONGEST_MS = 300
"""Of one frame, whatever the recording took: a quick pace."""
LAST_MS = 3000
PROMPT = "A red panda drinks tea on a mossy stone, with steam rising in the morning light"
TYPED_LETTERS = 9
"""Letters of the prompt between two frames."""


@dataclass
class Recording:
    """Frames of the page and when each was taken."""

    page: Page
    frames: list[tuple[float, Image.Image]] = field(default_factory=list)

    def take(self) -> None:
        png = self.page.screenshot(animations="allow")
        self.frames.append((time.monotonic(), Image.open(io.BytesIO(png)).convert("RGB")))

    def follow(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.take()

    def save(self, path: Path) -> None:
        """Write an animation that loops, without frames that repeat the one before."""
        different = [self.frames[0]]
        for taken_at, frame in self.frames[1:]:
            if ImageChops.difference(frame, different[-1][1]).getbbox():
                different.append((taken_at, frame))
        moments = [taken_at for taken_at, _ in different]
        durations = [
            min(LONGEST_MS, round(1000 * (after - before))) for before, after in pairwise(moments)
        ]
        height = round(SHOWN_WIDTH * SIZE["height"] / SIZE["width"])
        pictures = [frame.resize((SHOWN_WIDTH, height)) for _, frame in different]
        pictures[0].save(
            path,
            save_all=True,
            append_images=pictures[1:],
            duration=[*durations, LAST_MS],
            loop=0,
            quality=QUALITY,
            method=6,
            minimize_size=True,
        )
        print(f"{path}: {len(pictures)} frames, {path.stat().st_size:,} bytes")


def main() -> None:
    """Make a video on the page, and record it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), mock="true", mock_speed="h100/16", preview_steps="3") as stack,
        chromium() as browser,
    ):
        stack.start_gateway()
        stack.start_worker()
        with visit(stack, browser, viewport=SIZE) as visitor:
            visitor.makes("A lighthouse in a storm", Steps=10)  # the first run measures the speed
            visitor.page.goto(stack.url)
            record(visitor).save(PICTURE)


def record(visitor: Visitor) -> Recording:
    recording = Recording(visitor.page)
    visitor.ask_for("", Steps=30, Frames=52)
    for end in range(0, len(PROMPT) + TYPED_LETTERS, TYPED_LETTERS):
        visitor.field("Prompt").fill(PROMPT[:end])
        recording.take()
    visitor.button("Generate").hover()
    recording.follow(0.7)  # until the offer is there
    visitor.button("Generate").click()
    while visitor.state.text_content() != "Your video is ready":
        recording.take()
    expect(visitor.page.locator("#video")).to_have_attribute("aria-label", f"Video: {PROMPT}")
    recording.follow(2.5)
    return recording


if __name__ == "__main__":
    main()
