"""What requests and the setting say of LoRAs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.errors import EngineError, InvalidParametersError
from models.group import Task
from models.mock.fake_engine import FakeEngine
from models.request.catalogue import CATALOGUE
from models.request.loras import MOST, parse_named
from models.request.params import GenerateParams, RequestParams, parse_params
from models.settings import EngineSettings

FORTY = "a" * 40


def lora_of(value: Any) -> dict[str, float] | None:
    params, unknown = parse_params({"prompt": "a pond", "lora": value})
    assert unknown == []
    return params.lora


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ({}, None),
        ("{}", None),
        ("noir-2", {"noir-2": 1.0}),
        (" noir ", {"noir": 1.0}),
        (FORTY, {FORTY: 1.0}),
        ({"noir": 0.5}, {"noir": 0.5}),
        ({"noir": -2, "anime": 2}, {"anime": 2.0, "noir": -2.0}),
        ('{"noir": 0.5}', {"noir": 0.5}),
        (dict.fromkeys("abcd", 0), dict.fromkeys("abcd", 0.0)),
    ],
)
def test_a_request_names_one_or_some_with_their_scales(
    value: object, expected: dict[str, float] | None
) -> None:
    assert lora_of(value) == expected
    assert list(lora_of(value) or {}) == sorted(expected or {})


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (7, "another type"),
        (True, "another type"),
        (["noir"], "another type"),
        ("Noir", "a name that is not"),
        ("a" * 41, "a name that is not"),
        ("a,b", "a name that is not"),
        ({"": 1}, "a name that is not"),
        ({"noir\n": 1}, "a name that is not"),
        (dict.fromkeys("abcde", 1), "5 names"),
        ({"noir": "0.5"}, "a scale of `noir` that is no number"),
        ({"noir": None}, "a scale of `noir` that is no number"),
        ({"noir": True}, "a scale of `noir` that is no number"),
        ({"noir": 2.01}, "2.01 as the scale of `noir`"),
        ({"noir": 9}, "9 as the scale of `noir`"),
        ({"noir": float("nan")}, "nan as the scale of `noir`"),
        ({"noir": 10**400}, "a number of many digits as the scale of `noir`"),
        ('{"noir": Infinity}', "inf as the scale of `noir`"),
        ("{noir}", "a text that is no JSON"),
        ('{"a": ' + "[" * 60_000, "a text that is no JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_anything_else_is_refused_with_the_rule(value: object, why: str) -> None:
    with pytest.raises(InvalidParametersError) as refused:
        lora_of(value)
    rule = '`lora` must be the name of a LoRA, or an object like {"noir": 0.8} of up to 4 names'
    assert str(refused.value).startswith(rule)
    assert f"; it has {why}" in str(refused.value)
    assert refused.value.parameters == {"lora": str(refused.value)}


def test_a_request_without_one_is_written_as_before() -> None:
    assert "lora" not in GenerateParams(prompt="a pond").model_dump_json()
    asked = RequestParams(prompt="a pond", lora={"b": 0.5, "a": 1})
    assert json.loads(asked.model_dump_json())["lora"] == {"a": 1, "b": 0.5}
    for model in CATALOGUE.values():
        params = model.parameters.model_validate_json(
            asked.model_dump_json(include={"prompt", "lora"})
        )
        assert Task.of_json(Task(params).to_json()).params == params
        assert params.lora == asked.lora


def test_the_setting_names_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    settings = EngineSettings(loras="noir=x.safetensors, anime = ~/a b=c.safetensors,plain,")
    assert settings.named_loras == {
        "noir": tmp_path / "x.safetensors",
        "anime": Path("/home/ada/a b=c.safetensors"),
        "plain": None,
    }
    assert EngineSettings(loras=settings.loras).named_loras == settings.named_loras
    assert EngineSettings().named_loras == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Noir=x.safetensors", "'Noir=x.safetensors' is not name=FILE.safetensors"),
        ("=x.safetensors", "is not name=FILE.safetensors"),
        ("noir=", "is not name=FILE.safetensors"),
        ("a=x,a=y", "a is named twice"),
        (",".join(f"n{number}" for number in range(MOST + 1)), "it has 17 LoRAs, and"),
    ],
)
def test_a_wrong_setting_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)):
        EngineSettings(loras=text)
    assert len(parse_named(",".join(f"n{number}" for number in range(MOST)))) == MOST


def test_the_light_mock_has_names_shows_them_and_refuses_others() -> None:
    engine = FakeEngine(0, loras=["noir", "anime"])
    assert engine.traits.loras.keys() == {"noir", "anime"}

    def frame(**lora: float) -> bytes:
        asked = GenerateParams(prompt="a pond", frames=1, steps=10, lora=lora)
        return next(engine.generate(asked, lambda *_: None).frames)

    assert (
        len({frame(), frame(noir=1), frame(noir=0.5), frame(anime=1), frame(anime=1, noir=1)}) == 5
    )
    with pytest.raises(EngineError, match="This worker has no LoRA `other`"):
        frame(other=1)
