"""The page at / lets its user choose the model, where the server has several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Route, expect

from server.keys.lookup import Scope
from tests.support.stack import Stack
from tests.support.visitor import Visitor, visit

FAST = "mochi-1-fast"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("choice")
    models = f"mochi-1,{FAST}"
    with Stack(folder, engine="fake", fake_step_seconds="0.001", models=models) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture
def visitor(stack: Stack, browser: Browser) -> Iterator[Visitor]:
    with visit(stack, browser) as visitor:
        yield visitor


def test_a_model_is_chosen_with_its_ranges_and_makes_the_video(visitor: Visitor) -> None:
    steps, guidance = visitor.field("Steps"), visitor.field("Guidance")
    frames = visitor.field("Frames")
    expect(steps).to_have_value("30")
    guidance.fill("2.5")
    frames.fill("3")
    visitor.page.get_by_label("Model", exact=True).select_option(FAST)
    expect(steps).to_have_value("8")
    expect(steps).to_have_attribute("max", "16")
    expect(visitor.page.locator("#steps-hint")).to_contain_text("4 to 16.")
    expect(guidance).to_have_value("2.5")  # it is in the range of the model, too
    expect(frames).to_have_value("3")
    expect(visitor.page.locator("#snippet")).to_contain_text(FAST)
    visitor.generate(Frames=1)
    expect(visitor.page.locator("#state")).to_have_text("Your video is ready")
    [request_id] = visitor.stack.redis.keys("mochi:request:*")
    assert visitor.stack.redis.hget(request_id, "model") == FAST

    visitor.button("Reset").click()
    expect(visitor.page.get_by_label("Model", exact=True)).to_have_value("mochi-1")
    expect(steps).to_have_value("30")
    expect(steps).to_have_attribute("max", "75")


def test_the_settings_of_a_request_have_its_model_again(visitor: Visitor) -> None:
    steps, model = visitor.field("Steps"), visitor.page.get_by_label("Model", exact=True)
    model.select_option(FAST)
    visitor.generate(Frames=1, Steps=5)
    expect(visitor.page.locator("#state")).to_have_text("Your video is ready")

    visitor.page.reload()
    expect(visitor.page.locator("#model-part")).to_be_visible()
    expect(model).to_have_value(FAST)
    expect(steps).to_have_value("5")
    expect(steps).to_have_attribute("max", "16")

    model.select_option("mochi-1")
    expect(steps).to_have_value("30")
    visitor.button("Reuse settings").click()
    expect(model).to_have_value(FAST)
    expect(steps).to_have_value("5")


def test_a_key_is_offered_the_models_that_it_may_use(visitor: Visitor) -> None:
    model = visitor.page.get_by_label("Model", exact=True)
    offered = model.locator("option:not([disabled])")
    expect(offered).to_have_text(["Mochi 1", "FastMochi"])
    whole = visitor.key
    visitor.key = visitor.stack.key(models=[FAST])
    visitor.give_key()
    visitor.key_box.blur()
    expect(offered).to_have_text(["FastMochi"])
    expect(model).to_be_visible()  # it says which one that is
    expect(visitor.field("Steps")).to_have_value("8")
    expect(visitor.page.locator("#offer")).to_contain_text("ready in")
    visitor.page.reload()
    expect(offered).to_have_text(["FastMochi"])
    visitor.button("Reset").click()
    expect(model).to_have_value(FAST)
    visitor.generate(Frames=1, Steps=8)
    expect(visitor.state).to_have_text("Your video is ready")
    visitor.key = whole
    visitor.give_key()
    visitor.key_box.blur()
    expect(offered).to_have_text(["Mochi 1", "FastMochi"])
    expect(model).to_have_value(FAST)


def test_a_key_that_may_not_list_models_is_told_before_the_button_is_pressed(
    visitor: Visitor,
) -> None:
    visitor.key = visitor.stack.key(models=[FAST], scopes=[Scope.GENERATE])
    visitor.ask_for()
    offer = visitor.page.locator("#offer")
    said = "This API key may not use the model mochi-1; it may use mochi-1-fast."
    expect(offer).to_have_text(said)
    visitor.page.get_by_label("Model", exact=True).select_option(FAST)
    expect(offer).not_to_contain_text("may not")


def test_a_repeated_press_with_another_model_is_another_wish(visitor: Visitor) -> None:
    visitor.ask_for(Steps=12, Guidance="2.5")  # both models take these, so the bodies are the same
    names: list[str] = []

    def lose(route: Route) -> None:
        names.append(route.request.headers["idempotency-key"])
        route.abort()

    for slug in ("mochi-1", FAST):
        visitor.page.route(f"**/v2/{slug}", lose)
    for count, slug in enumerate(("mochi-1", "mochi-1", FAST), start=1):
        visitor.page.get_by_label("Model", exact=True).select_option(slug)
        visitor.button("Generate").click()
        expect(visitor.page.locator("#generate-text")).to_have_text("Generate")
        expect(visitor.page.locator("#problem")).to_contain_text("does not answer")
        assert len(names) == count
    assert names[0] == names[1] != names[2]
    visitor.forgive("Failed to load")


def test_a_lora_is_chosen_where_workers_have_some_and_kept(stack: Stack, visitor: Visitor) -> None:
    choice = visitor.page.get_by_label("LoRA", exact=True)
    expect(visitor.page.locator("#server")).to_have_attribute("data-state", "ready")
    expect(choice).to_be_hidden()
    expect(visitor.page.locator("#snippet")).not_to_contain_text("lora")

    stack.start_worker(loras="noir,ink")
    visitor.page.reload()
    choice.select_option("noir")
    expect(visitor.page.locator("#snippet")).to_contain_text('lora="noir"')
    visitor.generate(Frames=1)
    expect(visitor.page.locator("#state")).to_have_text("Your video is ready")
    asked = {stack.redis.hget(each, "loras") for each in stack.redis.keys("mochi:request:*")}
    assert asked == {None, "noir"}

    visitor.page.reload()
    expect(choice).to_have_value("noir")
    choice.select_option("none")
    visitor.button("Reuse settings").click()
    expect(choice).to_have_value("noir")


def test_a_server_of_one_model_leaves_no_choice(server: Stack, browser: Browser) -> None:
    with visit(server, browser) as visitor:
        expect(visitor.page.locator("#server")).to_have_attribute("data-state", "ready")
        expect(visitor.page.locator("#model-part")).to_be_hidden()
        expect(visitor.page.locator("#snippet")).to_contain_text("mochi-1")


def test_a_server_without_the_default_model_offers_its_own(server: Stack, browser: Browser) -> None:
    with visit(server, browser) as visitor:
        whole = visitor.page.request.get(f"{server.url}/version").json()
        visitor.page.route(
            "**/version", lambda route: route.fulfill(json=whole | {"models": [FAST]})
        )
        visitor.page.reload()
        expect(visitor.field("Steps")).to_have_value("8")
        expect(visitor.page.locator("#model-part")).to_be_hidden()
