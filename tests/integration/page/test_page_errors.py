"""The page at /, in a real browser: what is wrong with a request, and where that is said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.support.stack import Stack
from tests.support.visitor import Visitor, visit


@pytest.fixture
def visitor(server: Stack, browser: Browser) -> Iterator[Visitor]:
    with visit(server, browser) as visitor:
        yield visitor


def test_what_the_server_refuses_is_shown_at_the_field_and_the_form_stays(visitor: Visitor) -> None:
    visitor.generate(Frames=161)
    frames = visitor.field("Frames")
    expect(frames).to_have_accessible_description(
        re.compile("Frames must be a whole number from 1 to 160; got 161.")
    )
    expect(frames).to_have_attribute("aria-invalid", "true")
    expect(frames).to_be_focused()
    expect(visitor.page.locator("#frames-hint")).to_be_hidden()  # the error says the range
    frames.fill("1")
    visitor.field("Prompt").fill(" ")
    visitor.button("Generate").click()
    expect(visitor.field("Prompt")).to_have_accessible_description(re.compile("only white space"))
    expect(frames).not_to_have_attribute("aria-invalid", "true")
    visitor.generate(Seed=-7, Frames=500, **{"Frame rate": "1e9"})
    for label, said in {
        "Frame rate": "Frame rate must be a number from 7 to 30; got 1000000000.",
        "Frames": "Frames must be a whole number from 1 to 160; got 500.",
        "Seed": "Seed must be a whole number from -1 to 2^63-1; got -7.",
    }.items():
        expect(visitor.field(label)).to_have_accessible_description(re.compile(re.escape(said)))
        expect(visitor.field(label)).to_have_attribute("aria-invalid", "true")
    expect(visitor.field("Frame rate")).to_be_focused()
    expect(visitor.page.locator("#offer")).to_have_text("")
    assert visitor.requests.count() == 0


def test_an_error_shows_when_its_field_is_left_and_goes_with_a_correction(
    visitor: Visitor,
) -> None:
    visitor.makes()  # now it is known how long one takes
    offer, prompt = visitor.page.locator("#offer"), visitor.field("Prompt")
    for label, wrong, right, said in (
        ("Draft", "40", "8", "Draft must be a whole number from 1 to 29, fewer than steps; got 40"),
        ("Frames", "500", "5", "Frames must be a whole number from 1 to 160; got 500."),
    ):
        field = visitor.field(label)
        visitor.ask_for(Steps=30)
        field.fill(wrong)
        prompt.focus()
        expect(field).to_have_accessible_description(re.compile(re.escape(said)))
        expect(prompt).to_be_focused()
        field.fill(right)  # the keyboard's place is still in the field
        expect(field).not_to_have_attribute("aria-invalid", "true")
        expect(offer).to_contain_text("ready in")
        with visitor.page.expect_response("**/*dry_run=true") as trial:
            field.fill(wrong)
        trial.value.finished()
        visitor.page.evaluate("new Promise((done) => setTimeout(done))")
        expect(field).not_to_have_attribute("aria-invalid", "true")  # it may be half-typed
        visitor.button("Generate").click()
        expect(field).to_have_attribute("aria-invalid", "true")
        field.fill(right)
        expect(field).not_to_have_attribute("aria-invalid", "true")
    visitor.field("Draft").fill("28")
    visitor.field("Steps").fill("20")
    expect(visitor.field("Draft")).to_have_attribute("aria-invalid", "true")
    visitor.field("Steps").fill("30")
    expect(visitor.field("Draft")).not_to_have_attribute("aria-invalid", "true")


def test_whatever_else_keeps_a_request_from_being_made_is_said_and_it_can_be_tried_again(
    visitor: Visitor,
) -> None:
    for status, said in {
        406: "Refused with 406.",
        429: "You can try again in 7",
        502: "The server cannot answer right now (502).",
        None: "The server does not answer.",
    }.items():
        names: list[str] = []
        answer = partial(refuse, status=status, names=names)
        visitor.page.route("**/v2/mochi-1", answer)
        for _ in range(2):
            with visitor.page.expect_request("**/v2/mochi-1"):
                visitor.generate(f"a pond at {status}")
            expect(visitor.page.locator(".problem")).to_contain_text(said)
            expect(visitor.field("Prompt")).to_have_value(f"a pond at {status}")
        # The answer may have been lost, and not the request: it goes by the same name then.
        assert (names[0] == names[1]) == (status != 406)
        visitor.page.unroute("**/v2/mochi-1", answer)
    visitor.forgive("Failed to load")


def refuse(route: Route, status: int | None, names: list[str]) -> None:
    names.append(route.request.headers["idempotency-key"])
    if status is None:
        route.abort()
    else:
        body = "<html>" if status == 502 else json.dumps({"error": f"Refused with {status}."})
        route.fulfill(status=status, headers={"retry-after": "77"}, body=body)


def test_a_draft_of_too_many_steps_is_told_at_its_field(visitor: Visitor) -> None:
    visitor.generate(Steps=12, Frames=3, Draft=12)
    expect(visitor.field("Draft")).to_have_accessible_description(
        re.compile("Draft must be a whole number from 1 to 11, fewer than steps; got 12")
    )
    expect(visitor.field("Draft")).to_be_focused()
