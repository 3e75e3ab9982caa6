"""The page at /, in a real browser: a request from the press of the button to its end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect

from models.request.params import WIDTH, GenerateParams
from tests.support.stack import Stack
from tests.support.visitor import Visitor, visit

TERMS = "[real people]\nann o'hara\n"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway, and a worker that takes its time and reads prompts before."""
    folder = tmp_path_factory.mktemp("page")
    terms = folder / "terms.txt"
    terms.write_text(TERMS)
    with Stack(folder, engine="fake", fake_step_seconds="0.05") as stack:
        stack.start_gateway()
        stack.start_worker(moderation_terms=str(terms))
        yield stack


@pytest.fixture
def visitor(stack: Stack, browser: Browser) -> Iterator[Visitor]:
    with visit(stack, browser) as visitor:
        yield visitor


@contextmanager
def busy(visitor: Visitor) -> Iterator[None]:
    """The worker has something else to do, for the same key, until the end of this."""
    client = visitor.stack.http(visitor.key)
    body = {"prompt": "another pond", "steps": 75, "frames": 1}
    ids = [client.post("/v2/mochi-1", json=body).json()["request_id"] for _ in range(20)]
    yield
    for request_id in ids:
        client.delete(f"/v2/requests/{request_id}")


def test_a_video_is_waited_for_seen_on_its_way_and_played(visitor: Visitor) -> None:
    visitor.page.emulate_media(reduced_motion="no-preference")
    screen = visitor.page.locator("#screen")
    place = screen.bounding_box()
    with busy(visitor):
        visitor.generate(Steps=40, Frames=52)
        expect(visitor.state).to_have_text(re.compile(r"In the queue, place \d+"))
        assert visitor.button("Cancel").is_visible()
        visitor.page.evaluate("scrollTo(0, 0)")
        below = visitor.requests.first.bounding_box()
    expect(visitor.state).to_have_text("Your video is ready")
    assert ("running", "Denoising", True) in visitor.seen()
    # Each stage was announced, and neither each place, nor each step or per cent.
    said = visitor.said()
    assert "Denoising" in said
    assert len(said) == len(set(said)) < 9
    assert said[-1] == "Your video is ready"
    video = visitor.page.locator("#video")
    visitor.page.wait_for_function(
        "([video, width]) => video.readyState >= 3 && video.videoWidth === width"
        " && video.currentTime > 0",
        arg=[video.element_handle(), WIDTH],
    )
    expect(video).to_be_visible()
    assert video.evaluate("one => [one.loop, one.controls, one.muted]") == [True, True, True]
    expect(visitor.page.locator("#preview")).to_be_hidden()
    visitor.page.evaluate("scrollTo(0, 0)")
    assert screen.bounding_box() == place
    assert visitor.requests.first.bounding_box() == below
    expect(visitor.fact("Seed")).to_have_text(str(GenerateParams(prompt="a pond").seed))
    expect(visitor.fact("Kept until")).to_have_text(re.compile(r"\d\d:\d\d"))
    expect(visitor.page).to_have_title(re.compile("^ready"))
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "a-pond-at-night-985521.mp4"
    assert download.value.path().read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("HTMLMediaElement.prototype.canPlayType = () => ''", "This browser cannot play it."),
        ("null", "The video cannot be loaded. It may have expired."),
    ],
)
def test_a_video_that_does_not_play_comes_with_the_reason(
    visitor: Visitor, script: str, text: str
) -> None:
    visitor.page.evaluate(script)
    visitor.page.route("**/v2/videos/**", lambda route: route.fulfill(body="no video"))
    visitor.makes()
    expect(visitor.page.locator("#detail")).to_contain_text(text)


def test_a_run_that_outlasts_its_forecast_is_not_ready_in_a_moment(visitor: Visitor) -> None:
    visitor.makes()  # now it is known how long one takes
    visitor.wish("slow:60")
    visitor.generate()
    expect(visitor.fact("Ready in")).to_have_text("more time than forecast")
    visitor.button("Cancel").click()
    expect(visitor.state).to_have_text("Cancelled")


def test_a_cancelled_request_is_shown_as_such(visitor: Visitor) -> None:
    visitor.generate(Steps=75)
    expect(visitor.state).to_have_text("Denoising")
    visitor.button("Cancel").click()
    expect(visitor.state).to_have_text("Cancelled")
    assert visitor.stack.record(visitor.request_id())["error_code"] == "cancelled"
    expect(visitor.button("Cancel")).to_be_hidden()
    expect(visitor.requests.locator(".state")).to_have_text("Cancelled")


FAILURES = (
    ("fail:<b>Out of paint.</b>", "<b>Out of paint.</b>", "the id of", "internal"),
    ("out_of_memory", "Ask for fewer frames", "Nothing was charged", "out_of_memory"),
    ("", "Moderation has blocked", "Change the prompt", "content_blocked"),
)
"""A scenario, or none for a blocked prompt; the error, the advice and the code that it leads to."""


def test_a_failure_says_what_happened_and_what_to_do(visitor: Visitor) -> None:
    for scenario, error, advice, code in FAILURES:
        prompt = "a pond" if scenario else "ann o'hara swims"
        visitor.wish(scenario)
        visitor.generate(prompt)
        expect(visitor.fact("Code")).to_have_text(code)
        expect(visitor.state).to_have_text("Failed")
        expect(visitor.page.locator("#error")).to_contain_text(error)
        expect(visitor.page.locator("#advice")).to_contain_text(advice)
        expect(visitor.fact("Request")).to_have_text(visitor.request_id())
        assert error in visitor.said()[-1]
        visitor.field("Prompt").fill("")
        visitor.button("Reuse settings").click()
        expect(visitor.field("Prompt")).to_have_value(prompt)
        expect(visitor.field("Prompt")).to_be_focused()


def test_after_a_reload_the_running_request_is_followed_and_the_ended_are_listed(
    visitor: Visitor,
) -> None:
    first = visitor.makes("a first pond")
    visitor.generate("a second pond", Steps=75)
    expect(visitor.state).to_have_text("Denoising")
    visitor.page.reload()
    expect(visitor.state).to_have_text("Denoising")
    expect(visitor.field("Prompt")).to_have_value("a second pond")
    expect(visitor.requests.locator(".prompt")).to_have_text(["a second pond", "a first pond"])
    poster = visitor.requests.nth(1).get_by_role("presentation")
    expect(poster).to_have_attribute("src", re.compile("^data:image/webp;base64,.{100,16000}$"))
    visitor.button("Cancel").click()
    expect(visitor.requests.locator(".state")).to_have_text(["Cancelled", "Ready"])
    visitor.page.get_by_role("link", name="a first pond").click()
    expect(visitor.page.locator("#asked")).to_have_text("a first pond")
    expect(visitor.state).to_have_text("Your video is ready")
    assert visitor.request_id() == first
    visitor.page.go_back()
    expect(visitor.state).to_have_text("Cancelled")


def test_requests_are_listed_for_their_key_while_they_live(visitor: Visitor) -> None:
    gone = visitor.makes("a first pond")
    visitor.makes("a second pond")
    first_key = visitor.key
    visitor.key = visitor.stack.key()
    visitor.give_key()
    visitor.key_box.blur()
    expect(visitor.requests).to_have_count(0)
    expect(visitor.state).to_have_text("Not found")
    visitor.key = first_key
    visitor.give_key()
    visitor.key_box.blur()
    expect(visitor.requests).to_have_count(2)
    visitor.stack.redis.delete(f"mochi:request:{gone}")
    visitor.page.reload()
    expect(visitor.requests.locator(".prompt")).to_have_text(["a second pond"])
    expect(visitor.state).to_have_text("Your video is ready")


def test_a_broken_stream_is_replaced_by_asking_and_a_server_that_is_away_waited_for(
    visitor: Visitor,
) -> None:
    visitor.page.route("**/events", lambda route: route.abort())
    visitor.page.route("**/v2/requests/*", lambda route: route.abort())
    visitor.generate()
    expect(visitor.page.locator("#trouble")).to_contain_text("The server does not answer.")
    visitor.page.unroute("**/v2/requests/*")
    expect(visitor.state).to_have_text("Your video is ready")
    expect(visitor.page.locator("#trouble")).to_be_hidden()
    visitor.forgive("Failed to load")


def test_all_can_be_done_with_the_keyboard(visitor: Visitor) -> None:
    keyboard = visitor.page.keyboard
    order: list[str] = []
    while "generate" not in order:
        keyboard.press("Tab")
        order.append(
            visitor.page.evaluate(
                "(({ id, innerText }) => id || innerText.trim())(document.activeElement)"
            )
        )
        if order[-1] == "key":
            keyboard.type(visitor.key)
        if order[-1] == "steps":
            keyboard.type("75")
        assert len(order) < 24
    assert order == [
        *("API docs", "reset", "API key", "key", "show-key", "prompt"),
        *("Paper boat", "Fox in snow", "Hosted example", "negative_prompt", "guidance_scale"),
        *("fps", "frames", "steps", "seed", "Draw a seed", "draft_steps"),
        *("format", "poster", "last_frame"),
        *("scenario", "generate"),
    ]
    visitor.field("Prompt").focus()
    keyboard.press("Control+Enter")
    expect(visitor.state).to_have_text("Denoising")
    visitor.button("Cancel").focus()
    keyboard.press("Enter")
    expect(visitor.state).to_have_text("Cancelled")


def test_a_gif_is_shown_with_its_poster_in_the_list_and_the_code_asks_for_the_same(
    visitor: Visitor,
) -> None:
    visitor.ask_for()
    assert "format" not in visitor.snippet.inner_text()
    visitor.field("Output").select_option(label="GIF")
    visitor.field("Poster").check()
    expect(visitor.snippet).to_contain_text('format="gif",\n    poster=True,')
    expect(visitor.snippet).to_contain_text("mochi.gif")
    visitor.button("Generate").click()
    expect(visitor.state).to_have_text("Your video is ready")
    animation = visitor.page.locator("#animation")
    visitor.page.wait_for_function(
        "([one, width]) => one.naturalWidth === width", arg=[animation.element_handle(), WIDTH]
    )
    expect(animation).to_be_visible()
    poster = visitor.requests.first.get_by_role("presentation")
    expect(poster).to_have_attribute("src", re.compile("^data:image/webp;base64,.{100,16000}$"))
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "a-pond-at-night-985521.gif"
    expect(visitor.page.get_by_role("link", name="Last frame")).to_be_hidden()
    visitor.page.reload()
    expect(visitor.field("Output")).to_have_value("gif")
    expect(visitor.field("Poster")).to_be_checked()


def test_a_webm_is_played_and_shows_its_poster_until_then(visitor: Visitor) -> None:
    visitor.ask_for()
    visitor.field("Output").select_option("webm")
    visitor.field("Poster").check()
    visitor.button("Generate").click()
    video = visitor.page.locator("#video")
    visitor.page.wait_for_function(
        "([video, width]) => video.readyState >= 2 && video.videoWidth === width",
        arg=[video.element_handle(), WIDTH],
    )
    expect(video).to_have_attribute("poster", re.compile(r"-poster\.jpg$"))
    expect(visitor.page.locator("#animation")).to_be_hidden()


def test_a_draft_is_looked_at_and_finished(visitor: Visitor) -> None:
    visitor.generate(Steps=12, Frames=3, Draft=4)
    expect(visitor.state).to_have_text("Your draft is ready")
    expect(visitor.fact("Draft")).to_have_text("4 of 12 steps")
    draft = visitor.request_id()
    states = visitor.requests.locator(".state")
    expect(states).to_have_text(["Draft"])
    visitor.page.reload()  # as later, or from the list
    visitor.button("Finish").click()
    expect(visitor.state).to_have_text("Your video is ready")
    expect(states).to_have_text(["Ready", "Draft"])
    expect(visitor.button("Finish")).to_be_hidden()
    finished = visitor.request_id()
    assert visitor.stack.record(finished)["draft_of"] == draft
    expect(visitor.requests).to_have_count(2)

    visitor.page.go_back()
    expect(visitor.state).to_have_text("Your draft is ready")
    visitor.button("Finish").click()  # a draft has one finish
    expect(visitor.state).to_have_text("Your video is ready")
    assert visitor.request_id() == finished
    expect(visitor.requests).to_have_count(2)
    visitor.button("Reuse settings").click()
    expect(visitor.field("Draft")).to_have_value("")


def test_the_code_to_copy_makes_the_whole_video(visitor: Visitor) -> None:
    visitor.ask_for(Draft=4)
    expect(visitor.snippet).not_to_contain_text("draft_steps")
    expect(visitor.page.locator("#snippet-hint")).to_contain_text("It makes the whole video")


def test_a_finish_that_is_refused_says_why(visitor: Visitor) -> None:
    visitor.generate(Steps=12, Frames=3, Draft=4)
    expect(visitor.state).to_have_text("Your draft is ready")
    visitor.stack.http(visitor.key).delete(f"/v1/videos/{visitor.request_id()}")
    visitor.button("Finish").click()
    expect(visitor.page.locator("#problem")).to_contain_text("not found")
    expect(visitor.button("Finish")).to_be_enabled()
