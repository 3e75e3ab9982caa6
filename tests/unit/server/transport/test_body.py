from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from server.errors import BodyTooLargeError, MalformedBodyError, WrongContentTypeError
from server.transport.body import parse_object, read_fields

MOST = 64


def read(chunks: Iterable[bytes], **headers: str) -> dict[str, Any]:
    headers.setdefault("content_type", "application/json")
    scope = {
        "type": "http",
        "headers": [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
        ],
    }
    left = iter(chunks)

    async def receive() -> dict[str, Any]:
        chunk = next(left, None)
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": not chunk.endswith(b"}")}

    return asyncio.run(read_fields(Request(scope, receive), MOST, ()))


def test_an_object_arrives_however_it_is_cut() -> None:
    assert read([b'{"prompt": "caf', b"\xc3", b'\xa9"}']) == {"prompt": "café"}


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"]
)
def test_json_may_be_declared_in_any_case_and_with_a_charset(content_type: str) -> None:
    assert read([b"{}"], content_type=content_type) == {}


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/jsonp", "multipart/form"])
def test_anything_else_is_refused_unread(content_type: str) -> None:
    with pytest.raises(WrongContentTypeError):
        read(never(), content_type=content_type)


def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(BodyTooLargeError, match="limit of 64 bytes"):
        read(never(), content_length=str(MOST + 1))


def test_no_more_is_read_than_the_limit() -> None:
    chunks = iter([b"x" * 16] * 100)
    with pytest.raises(BodyTooLargeError):
        read(chunks)
    assert len(list(chunks)) == 100 - MOST // 16 - 1


def test_a_body_as_long_as_the_limit_is_read() -> None:
    assert read([b"{%s}" % (b" " * (MOST - 2))]) == {}


def test_a_client_that_hangs_up_is_no_bug_of_ours() -> None:
    with pytest.raises(MalformedBodyError, match="ends early"):
        read([b'{"prompt": '])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "The body is empty"),
        (b'{"a": 1,\n oops}', "at line 2, column 2"),
        (b'"\xff"', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1, "a": 1}', "names a field twice"),
        (b'{"a": %s}' % (b"9" * 5_000), "too many digits"),
        (b'["prompt"]', "must be a JSON object"),
    ],
)
def test_the_refusal_says_what_is_wrong(body: bytes, words: str) -> None:
    with pytest.raises(MalformedBodyError, match=words):
        parse_object(body)


@given(st.binary(max_size=64) | st.text().map(str.encode))
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    with suppress(MalformedBodyError):
        assert isinstance(parse_object(body), dict)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.text() | st.floats(-1e9, 1e9)))
def test_what_json_can_say_is_understood(value: dict[str, Any]) -> None:
    assert parse_object(json.dumps(value).encode()) == value


def never() -> Iterator[bytes]:
    return map(_never, [b"{}"])


def _never(_chunk: bytes) -> bytes:
    raise AssertionError("the body was read")
