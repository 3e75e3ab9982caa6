"""A parameter is declared once: what it reads is what it documents."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from server.errors import BadHeaderError, BadQueryError
from server.transport.parameters import (
    Choice,
    Flag,
    Parameter,
    SingleText,
    Text,
    WholeNumber,
    documented,
)

LOUD = Flag(name="loud", description="Whether.")
DAYS = WholeNumber(name="days", description="So many.", least=2, most=400, default=30)
ORDER = Choice(name="order", description="Which.", choices=("asc", "desc"), default="desc")
AFTER = Text(name="after", description="What.", limits={"pattern": "^a"})
LABEL = SingleText(name="x-label", description="A.", place="header", least=1, most=3)


def request(query: str = "", *labels: str) -> Request:
    headers = [(b"x-label", label.encode()) for label in labels]
    return Request({"type": "http", "query_string": query.encode(), "headers": headers})


@pytest.mark.parametrize(
    ("query", "is_on"),
    [("", False), ("loud=true", True), ("loud=1", True), ("loud=false", False), ("loud=0", False)],
)
def test_a_flag_is_off_unless_it_is_on(query: str, *, is_on: bool) -> None:
    assert LOUD.read(request(query)) is is_on


@pytest.mark.parametrize("query", ["loud", "loud=", "loud=yes", "loud=TRUE", "loud=1&loud=1"])
def test_a_flag_has_four_values_and_comes_once(query: str) -> None:
    with pytest.raises(BadQueryError, match="`loud` must be one of `true`, `1`, `false` and `0`"):
        LOUD.read(request(query))


@pytest.mark.parametrize(
    ("query", "days"), [("", 30), ("days=2", 2), ("days=400", 400), ("days=x&days=007", 7)]
)
def test_a_number_is_the_last_one_or_the_default(query: str, days: int) -> None:
    assert DAYS.read(request(query)) == days


@pytest.mark.parametrize("text", ["", "1", "401", "2.0", "-2", "+2", "x", "9" * 5000, "²"])
def test_a_number_keeps_its_range(text: str) -> None:
    with pytest.raises(BadQueryError, match="`days` must be a whole number from 2 to 400"):
        DAYS.read(request(f"days={text}"))


def test_a_choice_is_one_of_its_words_or_the_default() -> None:
    assert ORDER.read(request()) == "desc"
    assert ORDER.read(request("order=asc")) == "asc"
    with pytest.raises(BadQueryError, match="`order` must be `asc` or `desc`"):
        ORDER.read(request("order=up"))


def test_a_text_is_the_last_one_or_empty() -> None:
    assert not AFTER.read(request())
    assert AFTER.read(request("after=a&after=b")) == "b"


def test_a_single_text_comes_once_and_keeps_its_length() -> None:
    assert LABEL.read(request("x-label=abc")) is None
    assert LABEL.read(request("", "abc")) == "abc"
    for labels, came in (([""], "got 0"), (["abcd"], "got 4"), (["a", "a"], "got 2 of them")):
        with pytest.raises(BadHeaderError, match=f"one value of 1 to 3 characters; {came}"):
            LABEL.read(request("", *labels))


@pytest.mark.parametrize(
    ("parameter", "schema"),
    [
        (LOUD, {"type": "string", "enum": ["true", "1", "false", "0"], "default": "false"}),
        (DAYS, {"type": "integer", "minimum": 2, "maximum": 400, "default": 30}),
        (ORDER, {"type": "string", "enum": ["asc", "desc"], "default": "desc"}),
        (AFTER, {"type": "string", "pattern": "^a"}),
        (LABEL, {"type": "string", "minLength": 1, "maxLength": 3}),
    ],
)
def test_a_parameter_is_documented_as_it_is_read(
    parameter: Parameter, schema: dict[str, object]
) -> None:
    (entry,) = documented(parameter)
    assert entry == {
        "name": parameter.name,
        "in": parameter.place,
        "required": False,
        "description": parameter.description,
        "schema": schema,
    }
