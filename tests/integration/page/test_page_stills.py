"""The page at /, in a real browser: the pictures beside a video, to download and in the code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.stack import Stack
from tests.support.visitor import Visitor, run_code, visit


@pytest.fixture
def visitor(server: Stack, browser: Browser) -> Iterator[Visitor]:
    with visit(server, browser) as visitor:
        yield visitor


def test_the_stills_of_a_video_are_downloaded_beside_it(visitor: Visitor) -> None:
    visitor.ask_for(Steps=12, Frames=3, Draft=4)
    stills = ("Poster", "Last frame")
    for label in stills:
        visitor.field(label).check()
        expect(visitor.page.get_by_role("link", name=label)).to_be_hidden()
    visitor.button("Generate").click()
    expect(visitor.state).to_have_text("Your draft is ready")
    assert download(visitor, "Poster").endswith("-poster.jpg")
    visitor.button("Finish").click()
    expect(visitor.state).to_have_text("Your video is ready")
    names = [download(visitor, label) for label in stills]
    assert names == ["a-pond-at-night-985521-poster.jpg", "a-pond-at-night-985521-last_frame.jpg"]
    visitor.page.set_viewport_size({"width": 320, "height": 740})
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 320

    for label in stills:
        visitor.field(label).uncheck()
    visitor.makes(Draft="")
    for label in stills:
        expect(visitor.page.get_by_role("link", name=label)).to_be_hidden()


def download(visitor: Visitor, link: str) -> str:
    """Save the JPEG of this link. Returns the name that the page gives it."""
    with visitor.page.expect_download() as started:
        visitor.page.get_by_role("link", name=link).click()
    assert started.value.path().read_bytes()[:2] == b"\xff\xd8"
    return started.value.suggested_filename


@pytest.mark.parametrize("tab", ["requests", "JavaScript", "curl"])
def test_the_code_that_gets_the_video_alone_asks_for_no_stills(visitor: Visitor, tab: str) -> None:
    hint = visitor.page.locator("#snippet-hint")
    visitor.page.get_by_label(tab, exact=True).check()
    expect(hint).not_to_contain_text("stills")
    visitor.field("Last frame").check()
    expect(hint).to_contain_text("It returns the video only; the Python tab gets the stills, too.")
    expect(visitor.snippet).not_to_contain_text("last_frame")
    visitor.page.get_by_label("Python", exact=True).check()
    expect(hint).not_to_contain_text("stills")


def test_the_python_code_gets_the_stills_beside_the_video(visitor: Visitor, tmp_path: Path) -> None:
    visitor.ask_for(Frames=1)
    visitor.field("Poster").check()
    visitor.field("Last frame").check()
    run_code(visitor, tmp_path, sys.executable, "-P", "-c", visitor.snippet.inner_text())
    files = {path.name: path.read_bytes()[:2] for path in tmp_path.glob("*.jpg")}
    assert files == dict.fromkeys(("mochi-poster.jpg", "mochi-last_frame.jpg"), b"\xff\xd8")
