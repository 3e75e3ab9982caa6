from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.errors import InvalidParametersError
from models.request.params import (
    MAX_DRAWN_SEED,
    FileParams,
    GenerateParams,
    RequestParams,
    hint,
    parse_params,
)

NUMBERS = {
    "guidance_scale": ("a number from 2 to 10", 2, 10),
    "fps": ("a number from 7 to 30", 7, 30),
    "frames": ("a whole number from 1 to 160", 1, 160),
    "steps": ("a whole number from 10 to 75", 10, 75),
    "seed": ("a whole number from -1 to 2^63-1", -1, 2**63 - 1),
}
WHOLE = [name for name, (rule, *_) in NUMBERS.items() if "whole" in rule]
TEXT_RULE = "Unicode text, of at most 4,000 characters, without control characters"
PROMPT_RULE = TEXT_RULE.replace("of at most", "not blank, of at most")


def parsed(**body: Any) -> RequestParams:
    return parse_params({"prompt": "a cat", **body})[0]


def refusal(**body: Any) -> str:
    with pytest.raises(InvalidParametersError) as error:
        parse_params({"prompt": "a cat", **body})
    return str(error.value)


def test_the_defaults_are_those_of_the_hosted_api() -> None:
    assert parsed().model_dump() == {
        "prompt": "a cat",
        "negative_prompt": "",
        "guidance_scale": 4.5,
        "fps": 16,
        "frames": 52,
        "steps": 30,
        "seed": 985521,
    }


def test_parameters_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        parsed().frames = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", NUMBERS)
def test_both_ends_of_a_range_are_allowed(name: str) -> None:
    _, low, high = NUMBERS[name]
    assert getattr(parsed(**{name: low}), name) == low
    assert getattr(parsed(**{name: high}), name) == high


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_outside_its_range_is_refused_with_the_range(name: str) -> None:
    rule, low, high = NUMBERS[name]
    assert refusal(**{name: low - 1}) == f"`{name}` must be {rule}; got {low - 1}."
    assert refusal(**{name: high + 1}) == f"`{name}` must be {rule}; got {high + 1}."


@pytest.mark.parametrize(("name", "value"), [("guidance_scale", 1.999), ("fps", 30.001)])
def test_a_fraction_just_outside_its_range_is_refused(name: str, value: float) -> None:
    assert refusal(**{name: value}).endswith(f"got {value}.")


def test_a_whole_number_is_shown_without_a_fraction() -> None:
    assert refusal(fps=1e9).endswith("got 1000000000.")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    ("value", "came"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        ("1e", "a string of 2 characters"),
        ([12], "a list"),
        ({"a": 12}, "an object"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (10**400, "a number of more than 20 digits"),
        (-(10**400), "a number of more than 20 digits"),
    ],
)
def test_what_is_no_finite_number_is_refused(name: str, value: object, came: str) -> None:
    assert refusal(**{name: value}) == f"`{name}` must be {NUMBERS[name][0]}; got {came}."


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["10", "10.0"])
def test_a_number_may_come_as_text(name: str, text: str) -> None:
    assert getattr(parsed(**{name: text}), name) == 10


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_float_is_a_whole_number(name: str) -> None:
    value = getattr(parsed(**{name: 52.0}), name)
    assert value == 52
    assert isinstance(value, int)


@pytest.mark.parametrize("name", WHOLE)
def test_a_fraction_is_no_whole_number(name: str) -> None:
    assert refusal(**{name: 52.5}) == f"`{name}` must be {NUMBERS[name][0]}; got 52.5."


@pytest.mark.parametrize("name", ["guidance_scale", "fps"])
def test_numbers_may_be_whole_or_fractional(name: str) -> None:
    assert getattr(parsed(**{name: 8}), name) == 8
    assert getattr(parsed(**{name: 7.125}), name) == 7.125


@pytest.mark.parametrize("format_", ["mp4", "webm", "gif"])
def test_a_video_may_have_any_of_three_formats(format_: str) -> None:
    assert parsed(format=format_).format == format_


@pytest.mark.parametrize(
    ("value", "came"),
    [
        ("avi", '"avi"'),
        ("MP4", '"MP4"'),
        ("", "a string of 0 characters"),
        ("a pond", "a string of 6 characters"),
        ("pond\n", "a string of 5 characters"),
        ("p" * 17, "a string of 17 characters"),
        (None, "null"),
        (4, "4"),
    ],
)
def test_another_format_is_refused_with_the_list(value: object, came: str) -> None:
    assert refusal(format=value) == f"`format` must be `mp4`, `webm` or `gif`; got {came}."


@pytest.mark.parametrize("name", ["poster", "last_frame"])
def test_a_still_is_asked_for_by_true_also_as_text(name: str) -> None:
    for value in (True, "true", "True", "1"):
        assert getattr(parsed(**{name: value}), name) is True
    for value in (False, "false", "False", "0"):
        assert parsed(**{name: value}) == parsed()


@pytest.mark.parametrize("name", ["poster", "last_frame"])
@pytest.mark.parametrize(("value", "came"), [(1, "1"), ("yes", '"yes"'), (None, "null")])
def test_what_is_no_flag_is_refused(name: str, value: object, came: str) -> None:
    assert refusal(**{name: value}) == f"`{name}` must be true or false; got {came}."


def test_files_are_told_apart_from_what_decides_the_frames() -> None:
    asked = parsed(format="gif", poster=True, seed=7)
    kept = asked.model_dump_json()
    assert GenerateParams.model_validate_json(kept).model_dump() == parsed(seed=7).model_dump()
    assert FileParams.model_validate_json(kept).model_dump() == {"format": "gif", "poster": True}
    assert set(FileParams.model_fields).isdisjoint(GenerateParams.model_fields)


def test_a_prompt_is_required() -> None:
    with pytest.raises(InvalidParametersError) as error:
        parse_params({"seed": 1})
    assert str(error.value) == f"`prompt` is required: {PROMPT_RULE}."


@pytest.mark.parametrize("prompt", [" ", "\n\t\r", "\u3000"])
def test_a_prompt_of_white_space_is_refused(prompt: str) -> None:
    assert refusal(prompt=prompt) == "`prompt` must not be blank: it has only white space."


def test_an_empty_prompt_is_refused() -> None:
    assert refusal(prompt="") == "`prompt` must not be empty."


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("text", ["a\tb\r\nc", "猫 \U0001f408 é", "a" * 4000])
def test_any_unicode_text_is_allowed(name: str, text: str) -> None:
    assert getattr(parsed(**{name: text}), name) == text


@pytest.mark.parametrize(
    ("name", "rule"), [("prompt", PROMPT_RULE), ("negative_prompt", TEXT_RULE)]
)
def test_what_is_no_short_plain_text_is_refused(name: str, rule: str) -> None:
    must = f"`{name}` must be {rule};"
    assert refusal(**{name: "a" * 4001}) == f"{must} got a string of 4,001 characters."
    assert refusal(**{name: None}) == f"{must} got null."
    assert refusal(**{name: 5}) == f"{must} got 5."
    assert refusal(**{name: ["a"]}) == f"{must} got a list."
    for control in "\x00\x07\x1b\x1f":
        assert refusal(**{name: f"a{control}"}) == f"{must} it has control characters."


def test_half_a_surrogate_pair_is_refused_without_repeating_it() -> None:
    message = refusal(prompt=json.loads('"\\ud800"'))
    assert message.isascii()
    assert message == f"`prompt` must be {PROMPT_RULE}; it has half of a surrogate pair."


def test_a_message_never_repeats_text_of_the_user() -> None:
    assert "secret" not in refusal(prompt="secret\x00")
    assert "secret" not in refusal(frames="secret")
    assert "secret" not in refusal(frames={"secret": "secret"})


def test_unknown_names_are_reported_and_do_nothing() -> None:
    params, unknown = parse_params({"prompt": "a cat", "widht": 5, "base64": True})
    assert params == parsed()
    assert unknown == ["widht", "base64"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("num_frames", "frames"),
        ("num_inference_steps", "steps"),
        ("guidance", "guidance_scale"),
        ("promt", "prompt"),
        ("negativePrompt", "negative_prompt"),
    ],
)
def test_a_warning_names_the_parameter_that_an_unknown_name_means(name: str, meant: str) -> None:
    assert hint(name) == f"`{name}` is unknown and was ignored; did you mean `{meant}`?"
    assert hint("base64") == "`base64` is unknown and was ignored"


@given(st.integers(1, 160))
def test_the_model_makes_the_next_6k_plus_1_frames(frames: int) -> None:
    made = parsed(frames=frames).model_frames
    assert made % 6 == 1
    assert 0 <= made - frames < 6


def test_a_seed_that_was_asked_for_is_kept() -> None:
    params = parsed(seed=0)
    assert params.with_seed(random.Random(1)) is params


@given(st.randoms(use_true_random=False))
def test_a_drawn_seed_is_exact_in_a_double(rng: random.Random) -> None:
    params = parsed(seed=-1).with_seed(rng)
    assert 0 <= params.seed <= MAX_DRAWN_SEED
    assert int(float(params.seed)) == params.seed
    assert params.model_copy(update={"seed": -1}) == parsed(seed=-1)
