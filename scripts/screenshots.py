"""Pictures of the page, for the documents: what `scripts/screenshots` runs."""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from tests.support.stack import Stack
from tests.support.visitor import Visitor, chromium, visit

DOCS = Path(__file__).parents[1] / "docs"
SIZE = {"width": 1200, "height": 840}
COLOURS = 128
"""Of a picture: the noise of mock weights does not shrink otherwise."""
PROMPT = "A red panda drinks tea on a mossy stone, with steam rising in the morning light"


def main() -> None:
    """Make a video and a failure, and take pictures on the way."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), mock="true", mock_speed="h100/60", preview_steps="2") as stack,
        chromium() as browser,
    ):
        terms = Path(folder) / "terms.txt"
        terms.write_text("[real people]\nann o'hara\n")
        stack.start_gateway()
        worker = stack.start_worker(moderation_terms=str(terms))
        with visit(stack, browser, viewport=SIZE) as visitor:
            take(visitor, "idle")
            visitor.makes("A lighthouse in a storm")  # from now on it is known how long one takes
            visitor.generate(PROMPT, Steps=75, Frames=160)
            expect(visitor.page.locator("#preview")).to_be_visible()
            worker.send_signal(signal.SIGSTOP)  # so that it stays as it is
            time.sleep(2)
            take(visitor, "running")
            worker.send_signal(signal.SIGCONT)
            expect(visitor.state).to_have_text("Your video is ready")
            visitor.page.wait_for_function("() => document.getElementById('video').currentTime > 1")
            take(visitor, "done")
            visitor.generate("A portrait of Ann O'Hara in the rain")
            expect(visitor.state).to_have_text("Failed")
            take(visitor, "failed")


def take(visitor: Visitor, name: str) -> None:
    """One picture, of few colours."""
    path = DOCS / f"page-{name}.png"
    visitor.page.evaluate("scrollTo(0, 0)")
    visitor.page.screenshot(path=path)
    picture = Image.open(path).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    picture.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
