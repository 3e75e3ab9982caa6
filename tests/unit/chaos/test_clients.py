"""How the clients of the chaos run tell whether a video is the one that they asked for."""

from __future__ import annotations

from typing import Any

import pytest

from models.mock.scene import comment_of
from models.request.params import GenerateParams
from tests.chaos.clients import SEED, is_of

ASKED = {"model": "mochi-1", "place": 1, "prompt": "chaos 1", "fps": 24, "lora": {"ink": 0.5}}


def video(**others: Any) -> bytes:
    params = {"prompt": "chaos 1", "fps": 24, "lora": {"ink": 0.5}, "seed": SEED + 1} | others
    comment = comment_of(GenerateParams.model_validate(params), "light mock").encode()
    return b"\0\xffftyp" + comment + b"\0\xff}"


def test_a_video_is_known_by_the_parameters_in_its_comment() -> None:
    assert is_of(ASKED, video())


@pytest.mark.parametrize(
    "others",
    [{"prompt": "chaos 2"}, {"seed": SEED}, {"fps": 16}, {"lora": None}, {"lora": {"noir": 0.5}}],
)
def test_a_video_of_another_request_is_told_apart(others: dict[str, Any]) -> None:
    assert not is_of(ASKED, video(**others))


def test_a_video_with_a_lora_that_was_not_asked_for_is_told_apart() -> None:
    plain = {name: value for name, value in ASKED.items() if name != "lora"}
    assert is_of(plain, video(lora=None))
    assert not is_of(plain, video())


def test_a_file_without_a_comment_is_of_no_request() -> None:
    assert not is_of(ASKED, b"no video")
