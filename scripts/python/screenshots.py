"""Makes the pictures of the page for the documents: what `scripts/screenshots` runs."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops
from playwright.sync_api import Browser, Page, expect

from tests.support.stack import Stack
from tests.support.visitor import Visitor, chromium, visit

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
SCREEN = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
SHOWN_WIDTH = 1000
QUALITY = 65
STILL_QUALITY = 80
LONGEST_MS = 300
"""Of one frame, whatever the recording took: a quick pace."""
LAST_MS = 3000
SETTLE_SECONDS = 1.0
"""Until the first frames of a video are drawn."""
EARLIER = (
    "A hummingbird hovers over a red flower",
    "Lanterns rise above a lake at dusk",
    "A lighthouse in a storm, waves on the rocks",
)
PROMPT = "A red panda drinks tea on a mossy stone, with steam rising in the morning light"
TYPED_LETTERS = 6
"""Letters of the prompt between two frames."""


@dataclass
class Recording:
    """Frames of the page and when each was taken."""

    page: Page
    frames: list[tuple[float, Image.Image]] = field(default_factory=list)

    def take(self) -> None:
        self.frames.append((time.monotonic(), picture_of(self.page)))

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
        height = round(SHOWN_WIDTH * SCREEN["height"] / SCREEN["width"])
        pictures = [frame.resize((SHOWN_WIDTH, height)) for _, frame in different]
        pictures[0].save(
            path,
            save_all=True,
            append_images=pictures[1:],
            duration=[*durations, LAST_MS],
            loop=0,
            quality=QUALITY,
            method=6,
            kmin=0,
            kmax=1,  # whole frames: changes alone leave blocks in slow gradients
        )
        print(f"{path}: {len(pictures)} frames, {path.stat().st_size:,} bytes")


def main() -> None:
    """Record the page while it makes a video, then take it in the dark and on a phone."""
    settings = {"engine": "fake", "fake_step_seconds": "0.12", "preview_steps": "2"}
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), **settings) as stack,
        chromium() as browser,
    ):
        stack.start_gateway()
        stack.start_worker()
        with visitor_with_videos(stack, browser, {"viewport": SCREEN}) as visitor:
            record(visitor).save(FOLDER / "page.webp")
            visitor.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
            save(visitor, "dark.webp")
        phone = {"viewport": PHONE, "device_scale_factor": 2, "has_touch": True}
        with visitor_with_videos(stack, browser, phone) as visitor:
            visitor.requests.first.click()
            visitor.page.mouse.move(0, 0)
            expect(visitor.state).to_have_text("Your video is ready")
            visitor.page.evaluate("document.getElementById('request').scrollIntoView()")
            time.sleep(SETTLE_SECONDS)
            save(visitor, "phone.webp")


@contextmanager
def visitor_with_videos(
    stack: Stack, browser: Browser, context: dict[str, Any]
) -> Iterator[Visitor]:
    """A visitor whose browser has made some videos before, with their pictures in its list."""
    with visit(stack, browser, reduced_motion="no-preference", **context) as visitor:
        for count, prompt in enumerate(EARLIER, 1):
            visitor.makes(prompt, Frames=52)
            expect(visitor.page.locator("#history img")).to_have_count(count)
        visitor.page.goto(stack.url)  # without the last request
        visitor.button("Reset").click()
        visitor.page.mouse.move(0, 0)
        visitor.page.evaluate("scrollTo(0, 0)")
        yield visitor


def record(visitor: Visitor) -> Recording:
    recording = Recording(visitor.page)
    visitor.field("Prompt").focus()
    recording.follow(0.6)
    for end in range(0, len(PROMPT) + TYPED_LETTERS, TYPED_LETTERS):
        visitor.field("Prompt").fill(PROMPT[:end])
        recording.take()
    recording.follow(0.9)  # until price and time are there
    visitor.page.keyboard.press("Control+Enter")  # a click would scroll
    while visitor.state.text_content() != "Your video is ready":
        recording.take()
    expect(visitor.page.locator("#video")).to_have_attribute("aria-label", f"Video: {PROMPT}")
    recording.follow(3.2)
    return recording


def save(visitor: Visitor, name: str) -> None:
    path = FOLDER / name
    picture_of(visitor.page).save(path, quality=STILL_QUALITY, method=6)
    print(f"{path}: {path.stat().st_size:,} bytes")


def picture_of(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(animations="allow"))).convert("RGB")


if __name__ == "__main__":
    main()
