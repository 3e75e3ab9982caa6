"""The page at /, in a real browser: the field of the API key, and where the key is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.stack import Stack
from tests.support.visitor import Visitor, visit


@pytest.fixture
def visitor(server: Stack, browser: Browser) -> Iterator[Visitor]:
    with visit(server, browser) as visitor:
        yield visitor


def test_a_bad_key_is_shown_at_its_box_and_a_good_one_goes_on(visitor: Visitor) -> None:
    good, box = visitor.key, visitor.key_box
    for bad, said in {
        "": "Enter an API key.",
        "ключ": "API keys contain printable ASCII",
        "mochi_wrong": "Invalid API key; ask the operator of this server",
    }.items():
        visitor.key = bad
        visitor.generate()
        expect(box).to_have_accessible_description(re.compile(re.escape(said)))
        expect(box).to_have_attribute("aria-invalid", "true")
        expect(box).to_be_focused()
        assert visitor.requests.count() == 0
    visitor.key = good
    visitor.makes()
    expect(box).not_to_have_attribute("aria-invalid", "true")
    visitor.key = "mochi_wrong"
    visitor.give_key()
    box.blur()
    expect(box).to_have_accessible_description(re.compile("Invalid API key"))
    expect(visitor.page.locator("#detail")).to_have_text("Enter the API key that made it.")
    visitor.page.goto(f"{visitor.stack.url}/#key={good}")
    expect(box).not_to_have_attribute("aria-invalid", "true")
    visitor.button("Generate").click()
    expect(visitor.requests).to_have_count(2)


def test_a_wrong_key_is_told_when_its_field_is_left_and_the_focus_goes_on(visitor: Visitor) -> None:
    good, box = visitor.key, visitor.key_box
    invitation = visitor.page.locator("#invitation")
    expect(invitation).to_contain_text("Enter an API key: mochi-server up prints where")
    visitor.key = "mochi_wrong"
    visitor.give_key()
    visitor.field("Prompt").focus()
    expect(box).to_have_accessible_description(re.compile("Invalid API key"))
    expect(box).to_have_attribute("aria-invalid", "true")
    expect(visitor.field("Prompt")).to_be_focused()
    assert visitor.said()[-1].startswith("Invalid API key")
    visitor.key = good
    visitor.give_key()
    expect(invitation).to_have_text("Describe a video, then press Generate.")
    visitor.field("Prompt").focus()
    expect(box).not_to_have_attribute("aria-invalid", "true")
    assert "Invalid" not in visitor.page.locator("#key-error").inner_text()


def test_the_key_stays_with_the_tab_and_stands_in_no_address(visitor: Visitor) -> None:
    asked: list[str] = []
    visitor.page.context.on("request", lambda request: asked.append(request.url))
    visitor.makes()
    assert len(asked) >= 3
    assert visitor.key not in "".join([*asked, visitor.page.url, visitor.snippet.inner_text()])
    assert visitor.key not in visitor.page.evaluate("JSON.stringify(localStorage)")
    visitor.page.reload()
    expect(visitor.key_box).to_have_value(visitor.key)
    expect(visitor.key_box).to_be_hidden()
    tab = visitor.page.context.new_page()
    tab.goto(visitor.stack.url)
    expect(tab.locator("#snippet")).to_contain_text("segmind")
    expect(tab.get_by_label("API key")).to_have_value("")
    # A link brings its key, also in place of another one, and the page says so.
    for key in (visitor.key, visitor.stack.key()):
        tab.goto(f"{visitor.stack.url}/#key={key}")
        expect(tab.get_by_label("API key")).to_have_value(key)
        expect(tab.locator("#key-state")).to_have_text("Set by the link")
        expect(tab.locator("#balance")).to_have_text("unlimited credits")
        expect(tab.locator("#invitation")).to_contain_text("Describe a video")
        assert tab.url == f"{visitor.stack.url}/"
    assert "key=" not in "".join(asked)
