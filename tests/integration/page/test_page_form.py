"""The page at /, in a real browser: its form, its code to copy, and who can use it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import av
import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Route, expect

from models.request.example import EXAMPLE_REQUEST
from models.request.params import HEIGHT, MAX_SEED, GenerateParams
from tests.support.stack import Stack
from tests.support.visitor import Visitor, run_code, visit
from tests.support.wire import another_gateway

ODD_PROMPT = """\
It's "odd": $HOME `id` $(id) \\n \\' \\\\ %s {x} !! 100 % äß 日本 🐼
# a second line\t<b>bold</b> </script> '''\\"""
"""What shells, Python, JSON and HTML each make something of."""
WIDTHS = (320, 1280)


@pytest.fixture
def visitor(server: Stack, browser: Browser) -> Iterator[Visitor]:
    with visit(server, browser) as visitor:
        yield visitor


def test_price_and_time_are_said_before_the_button_is_pressed(visitor: Visitor) -> None:
    visitor.makes()  # now it is known how long one takes
    visitor.come(another_gateway(visitor.stack, price_base="2.5"))
    visitor.ask_for()
    offer = visitor.page.locator("#offer")
    expect(offer).to_have_text(re.compile(r"^0\.44 s of video · 2\.5 credits · ready in a.+$"))
    expect(visitor.balance).to_have_text("unlimited credits")
    visitor.key = visitor.stack.key(credits="1")
    visitor.give_key()
    visitor.field("Prompt").fill("a pond by day")
    expect(offer).to_contain_text("costs up to 2.5, and the balance is 1")
    expect(visitor.balance).to_have_text("1 credit")
    visitor.button("Generate").click()
    expect(visitor.page.locator("#problem")).to_contain_text("the balance is 1")
    expect(offer).to_have_text("0.44 s of video")  # the reason is said once
    visitor.key_box.fill("")
    visitor.field("Prompt").fill("a pond by night")
    expect(offer).to_have_text("0.44 s of video")


def test_a_double_click_and_a_lost_answer_make_one_video(visitor: Visitor) -> None:
    visitor.ask_for()
    lost: list[str] = []

    def lose(route: Route) -> None:
        lost.append(route.fetch().json()["request_id"])
        route.abort()

    visitor.page.route("**/v2/mochi-1", lose, times=1)
    visitor.button("Generate").dblclick()
    expect(visitor.page.locator("#problem")).to_contain_text("does not answer")
    visitor.page.reload()
    assert [visitor.makes()] == lost
    visitor.button("Generate").click()  # it was answered: this is another wish
    expect(visitor.requests).to_have_count(2)
    expect(visitor.page.locator("#problem")).to_have_text("")
    visitor.forgive("Failed to load")


def test_the_same_seed_again_and_a_warning_is_shown(visitor: Visitor) -> None:
    visitor.makes(Seed=-1)
    drawn = visitor.fact("Seed").inner_text()
    visitor.button("Draw a seed").click()
    expect(visitor.field("Seed")).not_to_have_value(re.compile(f"^({drawn}|-1)$"))
    visitor.button("Reuse seed").click()
    expect(visitor.field("Seed")).to_have_value(drawn)
    visitor.wish("warn:Frogs were left out.")
    visitor.makes(Seed=MAX_SEED)
    expect(visitor.page.locator("#warnings")).to_have_text("Frogs were left out.")
    expect(visitor.fact("Seed")).to_have_text(str(MAX_SEED))  # more digits than a double has
    visitor.page.get_by_label("Response").check()
    answer = json.loads(visitor.snippet.inner_text())
    assert (
        answer == visitor.stack.http(visitor.key).get(f"/v2/requests/{visitor.request_id()}").json()
    )


def test_an_example_and_a_mock_outcome_are_chosen(visitor: Visitor) -> None:
    expect(visitor.page.locator("#server")).to_have_text("Ready · mock")
    visitor.button("Hosted example").click()
    for label, name in {"Prompt": "prompt", "Negative prompt": "negative_prompt"}.items():
        expect(visitor.field(label)).to_have_value(str(EXAMPLE_REQUEST[name]))
    visitor.button("Fox in snow").click()
    expect(visitor.field("Negative prompt")).to_have_value("")
    visitor.field("Mock outcome").select_option("out_of_memory")
    expect(visitor.snippet).to_contain_text('**{"x-mock-scenario": "out_of_memory"}')
    visitor.generate()
    expect(visitor.state).to_have_text("Failed")
    expect(visitor.fact("Code")).to_have_text("out_of_memory")


def test_the_state_of_the_server_is_shown(visitor: Visitor) -> None:
    card = {"model": "Mochi 1", "device": "NVIDIA H200", "is_mock": False}
    ready = {"status": "ready", "workers": "ready", "missing": []}
    remedy = "No live worker: start one with `mochi-server worker`."
    shown = {
        "Ready · NVIDIA H200": ready,
        "Model is loading": {"status": "no worker", "workers": "loading", "missing": ["Wait."]},
        "No worker": {"status": "no worker", "workers": "none", "missing": [remedy]},
        "No connection": None,
    }
    visitor.page.route("**/version", lambda route: route.fulfill(json={"engines": [card]}))
    for text, state in shown.items():
        answer = partial(answer_readyz, state=state)
        visitor.page.route("**/readyz", answer)
        visitor.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        expect(visitor.page.locator("#server")).to_have_text(text)
        expect(visitor.field("Mock outcome")).to_be_hidden()
        said = remedy.replace("`", "") if text == "No worker" else ""
        expect(visitor.page.locator("#notice")).to_have_text(said)
        visitor.page.unroute("**/readyz", answer)
    visitor.forgive("Failed to load")


def test_a_server_that_goes_away_and_comes_back_is_seen_with_the_calls_that_it_fails(
    visitor: Visitor,
) -> None:
    visitor.page.clock.install()
    visitor.come()
    badge, problem = visitor.page.locator("#server"), visitor.page.locator("#problem")
    expect(badge).to_have_text("Ready · mock")
    visitor.page.clock.pause_at(datetime.now(UTC) + timedelta(seconds=10))  # before the next look
    for paths in ("**/readyz", "**/version", "**/v2/**"):
        visitor.page.route(paths, lambda route: route.abort())
    visitor.generate()
    expect(problem).to_contain_text("The server does not answer.")
    expect(badge).to_have_text("No connection")
    visitor.page.unroute_all()
    visitor.page.clock.run_for(5_000)
    expect(badge).to_have_text("Ready · mock")
    expect(problem).to_have_text("")
    visitor.forgive("Failed to load")


def answer_readyz(route: Route, state: dict[str, Any] | None) -> None:
    if state is None:
        route.abort()
    else:
        route.fulfill(status=200 if state["status"] == "ready" else 503, json=state)


def test_the_code_makes_the_video_of_the_form(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"type": "module"}')
    python, node = (sys.executable, "-P", "-c"), ("node", "--input-type=module", "-e")
    commands = {"curl": ("/bin/bash", "-euc"), "Python": python, "requests": python}
    if shutil.which("node"):
        commands["JavaScript"] = node
    for frames, (tab, command) in enumerate(commands.items(), 3):
        visitor.ask_for(ODD_PROMPT, Seed=MAX_SEED, Frames=frames)
        visitor.page.get_by_label(tab, exact=True).check()
        run_code(visitor, tmp_path, *command, visitor.snippet.inner_text())
        check_video(visitor, tmp_path / "mochi.mp4", frames=frames)


def check_video(visitor: Visitor, path: Path, frames: int) -> None:
    """It is the one that the form asks for, to the letter."""
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == frames
        assert container.streams.video[0].height == HEIGHT
    redis, owner = visitor.stack.redis, visitor.stack.owner(visitor.key)
    asked = [
        json.loads(str(redis.hget(name, "params")))
        for name in redis.scan_iter("mochi:request:*")
        if redis.hget(name, "owner") == owner
    ]
    form = {"prompt": ODD_PROMPT, "seed": MAX_SEED, "frames": frames, "steps": 10}
    assert GenerateParams.model_validate(form).model_dump() in asked


def test_code_and_the_link_of_a_video_are_copied_also_without_tls(
    server: Stack, browser: Browser
) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    with visit(server, browser, permissions=permissions) as visitor:
        read = "clipboard.readText()"
        visitor.page.evaluate("window.clipboard = navigator.clipboard")
        visitor.button("Copy").click()
        expect(visitor.page.get_by_role("status")).to_have_text("Copied")
        assert visitor.page.evaluate(read) == visitor.snippet.inner_text()
        visitor.makes()
        visitor.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        visitor.button("Copy link").click()
        expect(visitor.page.locator("#copy-link:focus")).to_have_text("Copied")
        link = visitor.page.evaluate(read)
    assert httpx2.get(link).headers["content-type"] == "video/mp4"


def test_generate_stays_in_sight_and_its_shortcut_works_beside_the_form(visitor: Visitor) -> None:
    mac = "Object.defineProperty(navigator, 'platform', {value: 'MacIntel'})"
    visitor.page.add_init_script(mac)
    visitor.page.set_viewport_size({"width": 1280, "height": 700})
    visitor.page.reload()
    expect(visitor.page.locator("kbd").first).to_have_text("⌘")
    visitor.makes()
    for place in ("0", "document.body.scrollHeight"):
        visitor.page.evaluate(f"scrollTo(0, {place})")
        expect(visitor.button("Generate")).to_be_in_viewport(ratio=1)
    # The key works: its field makes room, and the keyboard's place is not lost.
    expect(visitor.key_box).to_be_hidden()
    visitor.snippet.focus()
    visitor.page.keyboard.press("Meta+Enter")
    expect(visitor.requests).to_have_count(2)


def test_a_held_enter_makes_one_video(visitor: Visitor) -> None:
    submits: list[str] = []
    visitor.page.on("request", lambda request: submits.append(f"{request.method} {request.url}"))
    submit = f"POST {visitor.stack.url}/v2/mochi-1"
    for count, (place, keys) in enumerate(
        [(visitor.field("Prompt"), ("Control", "Enter")), (visitor.field("Frames"), ("Enter",))], 1
    ):
        visitor.ask_for()
        place.focus()
        for key in keys:
            visitor.page.keyboard.down(key)
        expect(visitor.requests).to_have_count(count)
        for _ in range(4):
            visitor.page.keyboard.down("Enter")  # the operating system repeats it
        for key in keys:
            visitor.page.keyboard.up(key)
        visitor.page.evaluate("new Promise((done) => setTimeout(done))")
        assert submits.count(submit) == count


def test_ctrl_enter_on_a_link_or_a_button_beside_the_form_submits_nothing(
    visitor: Visitor,
) -> None:
    visitor.ask_for()
    visitor.page.evaluate("""() => {
      window.heard = [];
      addEventListener("submit", () => heard.push("submit"));
      addEventListener("click", (event) => {
        event.preventDefault(); // the browser would open a tab
        heard.push(`${event.target.textContent}, Ctrl: ${event.ctrlKey}`);
      });
    }""")
    visitor.page.get_by_role("link", name="API docs").press("Control+Enter")
    visitor.button("Copy").press("Control+Enter")
    heard = visitor.page.evaluate("heard")
    assert heard[0] == "API docs, Ctrl: true"
    assert "submit" not in heard


def test_a_finger_hits_what_it_aims_at_and_the_page_does_not_zoom(
    server: Stack, browser: Browser
) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with visit(server, browser, **phone) as visitor:
        visitor.makes()
        visitor.page.locator("#key-part summary").click()
        targets = "button, a, summary, input, select, textarea, .choice label"
        small = visitor.page.eval_on_selector_all(
            targets,
            """(all) => all
              .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 44)
              .map((one) => one.outerHTML)""",
        )
        assert small == []
        zooming = visitor.page.eval_on_selector_all(
            "input, select, textarea",
            "(all) => all.filter((one) => parseFloat(getComputedStyle(one).fontSize) < 16)",
        )
        assert zooming == []


def test_everybody_can_read_it_on_every_screen(visitor: Visitor) -> None:
    check_readable(visitor)
    visitor.makes("w" * 300)
    check_readable(visitor)
    visitor.wish("fail:" + "m" * 300)
    visitor.generate()
    expect(visitor.state).to_have_text("Failed")
    visitor.generate(Frames=0)
    expect(visitor.field("Frames")).to_have_attribute("aria-invalid", "true")
    check_readable(visitor)


def check_readable(visitor: Visitor) -> None:
    for width in WIDTHS:
        visitor.page.set_viewport_size({"width": width, "height": 740})
        wide = visitor.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
    for scheme in ("light", "dark"):
        visitor.page.emulate_media(color_scheme=scheme)
        # Colours alone depend on the scheme.
        rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else None
        found = Axe().run(visitor.page, options=rules)
        assert found.violations_count == 0, found.generate_report()


def test_it_works_below_a_path_of_a_proxy(visitor: Visitor) -> None:
    origin, folder = visitor.stack.url, f"{visitor.stack.url}/mochi/"

    def pass_on(route: Route) -> None:
        url = route.request.url.replace(folder, f"{origin}/")
        route.fulfill(response=route.fetch(url=url))

    visitor.page.route(f"{folder}**", pass_on)
    visitor.come(folder)
    expect(visitor.snippet).to_contain_text(f'{folder}v1"')
    visitor.makes()
    visitor.page.unroute_all(behavior="ignoreErrors")  # the page asks for the state again and again


def test_a_video_plays_from_where_its_link_leads(visitor: Visitor) -> None:
    origin = visitor.stack.url
    visitor.come(another_gateway(visitor.stack, public_url=origin))
    visitor.makes()
    assert visitor.page.evaluate("origin") != origin
    expect(visitor.page.locator("#video")).to_have_attribute("src", re.compile(f"^{origin}/v2/"))
    visitor.page.wait_for_function("() => document.getElementById('video').readyState >= 3")
