"""A user of the page at /: a real browser, and helpers named after what a user does."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

from models.mock.scenario import SCENARIO
from tests.support.stack import PATIENCE_SECONDS, Stack

BROWSERS = (
    "chromium-headless-shell",  # a third of the CPU time: it draws no windows
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
REMEDY = "There is no Chromium on the PATH: apt install chromium-headless-shell"
REMEMBER = """
    window.seen = [];
    window.said = [];
    document.addEventListener("DOMContentLoaded", () => {
        const section = document.getElementById("request");
        const note = () => window.seen.push([
            section.dataset.state,
            document.getElementById("state").textContent,
            !document.getElementById("preview").hidden,
        ]);
        const changes = { subtree: true, childList: true, attributes: true };
        new MutationObserver(note).observe(section, changes);
        const region = document.querySelector("[role=status]");
        new MutationObserver(() => window.said.push(region.textContent)).observe(region, changes);
    });
"""
"""All that was ever shown of a request, and announced, however short it was there."""

expect.set_options(timeout=PATIENCE_SECONDS * 1000)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine. None is fetched: without one, a desk skips and CI fails."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        assert "CI" not in os.environ, REMEDY
        pytest.skip(REMEDY)
    # As root, as in a container, Chromium has no sandbox; and what it opens is ours.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--headless=new", "--no-sandbox"]
        )
        yield browser
        browser.close()


class Visitor:
    """A user with a browser and an API key."""

    def __init__(self, stack: Stack, page: Page) -> None:
        self.stack = stack
        self.page = page
        self.key = stack.key()
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.add_init_script(REMEMBER)

    def _hear(self, message: ConsoleMessage) -> None:
        # A refusal is an answer; the browser tells of it all the same.
        if message.type in {"error", "warning"} and "status of 4" not in message.text:
            self.complaints.append(message.text)

    def forgive(self, text: str) -> None:
        """What the test itself has caused."""
        self.complaints = [one for one in self.complaints if text not in one]

    def come(self, url: str = "") -> None:
        """Open the page, or another one."""
        self.page.goto(url or self.stack.url)
        expect(self.snippet).to_contain_text("segmind")  # all scripts have run

    def ask_for(self, prompt: str = "a pond at night", **numbers: int | str) -> None:
        """Fill the form, as far as is said."""
        self.give_key()
        self.field("Prompt").fill(prompt)
        for label, number in ({"Steps": 10, "Frames": 7} | numbers).items():
            self.field(label).fill(str(number))

    def give_key(self) -> None:
        """Type it, if it is not there: a page that has one folds its field."""
        if self.key_box.input_value() != self.key:
            if not self.key_box.is_visible():
                self.page.locator("#key-part summary").click()
            self.key_box.fill(self.key)

    def generate(self, prompt: str = "a pond at night", **numbers: int | str) -> None:
        """The same, and press the button."""
        self.ask_for(prompt, **numbers)
        self.button("Generate").click()

    def makes(self, prompt: str = "a pond at night", **numbers: int | str) -> str:
        """The same, and wait for the video. Returns the id of the request."""
        self.generate(prompt, **numbers)
        expect(self.page.locator("#video")).to_have_attribute("aria-label", f"Video: {prompt}")
        expect(self.state).to_have_text("Your video is ready")
        return self.request_id()

    def wish(self, scenario: str) -> None:
        """From now on, a mock scenario comes with each request of the page; "" for none."""
        self.page.set_extra_http_headers({SCENARIO: scenario} if scenario else {})

    def field(self, label: str) -> Locator:
        """A field by its label."""
        return self.page.get_by_label(label, exact=True)

    def button(self, name: str) -> Locator:
        """A button by what it says."""
        return self.page.get_by_role("button", name=name, exact=True)

    @property
    def key_box(self) -> Locator:
        """Where the key is given."""
        return self.field("API key")

    @property
    def state(self) -> Locator:
        """The line that says what is going on."""
        return self.page.locator("#state")

    @property
    def snippet(self) -> Locator:
        """The code to copy."""
        return self.page.locator("#snippet")

    @property
    def balance(self) -> Locator:
        """The credits that are left."""
        return self.page.locator("#balance")

    @property
    def requests(self) -> Locator:
        """The list of this browser's requests."""
        return self.page.locator("#history li")

    def fact(self, name: str) -> Locator:
        """One of the facts on the request that is shown."""
        return self.page.locator(".facts div").filter(has_text=name).locator("dd")

    def seen(self) -> list[tuple[Any, ...]]:
        """State, headline, and whether there was a preview: all that was shown since the load."""
        return [tuple(one) for one in self.page.evaluate("window.seen")]

    def said(self) -> list[str]:
        """All that was announced since the load."""
        said: list[str] = self.page.evaluate("window.said")
        return said

    def request_id(self) -> str:
        """Of the request that is shown."""
        return str(self.page.evaluate("location.hash.slice(1)"))


@contextmanager
def visit(stack: Stack, browser: Browser, **context: Any) -> Iterator[Visitor]:
    """A visit, at the end of which the browser has had nothing to complain about."""
    # Without motion: endless animations and looping videos would take most of the CPU time.
    with browser.new_context(**{"locale": "en-GB", "reduced_motion": "reduce", **context}) as own:
        visitor = Visitor(stack, own.new_page())
        visitor.come()
        yield visitor
        assert visitor.complaints == []


def run_code(visitor: Visitor, folder: Path, *command: str) -> None:
    """Run the code that the visitor has copied, in `folder`."""
    environ = {"PATH": os.environ["PATH"], "HOME": "/", "MOCHI_API_KEY": visitor.key}
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
