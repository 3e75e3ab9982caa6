"""Bodies that break JSON parsers and validators: each is a 4xx, and affects no other client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.stack import Stack
from tests.support.wire import BODY_LIMIT, refusal

POND = b'"prompt": "a pond"'


def pond_and(field: str) -> bytes:
    return b'{"prompt": "a pond", %s}' % field.encode()


def text(**fields: Any) -> bytes:
    return json.dumps({"prompt": "a pond"} | fields).encode()


BODIES = {
    # No JSON at all.
    "empty": b"",
    "one space": b" ",
    "spaces up to the limit": b" " * BODY_LIMIT,
    "spaces over the limit": b" " * (BODY_LIMIT + 1),
    "one NUL": b"\0",
    "NULs up to the limit": b"\0" * BODY_LIMIT,
    "html": b"<html></html>",
    "form": b"prompt=a+pond",
    "python": b"{'prompt': 'a pond'}",
    "unquoted name": b'{prompt: "a pond"}',
    "comment": b'{/* */ "prompt": "a pond"}',
    "trailing comma": b'{"prompt": "a pond",}',
    "trailing brace": b'{"prompt": "a pond"}}',
    "trailing object": b'{"prompt": "a pond"}{"prompt": "a pond"}',
    "trailing NUL": b'{"prompt": "a pond"}\0',
    "cut off": b'{"prompt": "a po',
    "cut off in an escape": b'{"prompt": "\\u00',
    "no value": b'{"prompt": }',
    "no name": b'{: "a pond"}',
    # Not an object.
    "null": b"null",
    "true": b"true",
    "number": b"7",
    "string": b'"a pond"',
    "array": b"[]",
    "array of an object": b'[{"prompt": "a pond"}]',
    "object in a string": b'"{\\"prompt\\": \\"a pond\\"}"',
    # Encodings.
    "utf-16": '{"prompt": "a pond"}'.encode("utf-16"),
    "utf-16-le": '{"prompt": "a pond"}'.encode("utf-16-le"),
    "utf-32": '{"prompt": "a pond"}'.encode("utf-32"),
    "utf-7 byte order mark": b'+/v8-{"prompt": "a pond"}',
    "two byte order marks": b'\xef\xbb\xbf\xef\xbb\xbf{"prompt": "a pond"}',
    "latin-1": '{"prompt": "café"}'.encode("latin-1"),
    "cut off utf-8": b'{"prompt": "caf\xc3"}',
    "overlong utf-8": b'{"prompt": "\xc0\xaf"}',
    "raw lone surrogate": b'{"prompt": "\xed\xa0\x80"}',
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    # Strings.
    "escaped lone surrogate": b'{"prompt": "\\ud800"}',
    "escaped surrogates in the wrong order": b'{"prompt": "\\udc00\\ud800"}',
    "lone surrogate in the other prompt": pond_and('"negative_prompt": "x\\udfff"'),
    "raw NUL in a string": b'{"prompt": "a\0pond"}',
    "escaped NUL in a string": b'{"prompt": "a\\u0000pond"}',
    "raw line end in a string": b'{"prompt": "a\npond"}',
    "escape character": b'{"prompt": "\\u001b[2Ja pond"}',
    "bad escape": b'{"prompt": "\\x41"}',
    "empty prompt": b'{"prompt": ""}',
    "white prompt": b'{"prompt": " \\t\\n\\u00a0\\u2003"}',
    "long prompt": text(prompt="x" * 4_001),
    "long emoji prompt": text(prompt="\U0001f41f" * 4_001),
    "huge prompt": text(prompt="x" * BODY_LIMIT),
    # Numbers.
    "NaN": pond_and('"fps": NaN'),
    "Infinity": pond_and('"guidance_scale": Infinity'),
    "-Infinity": pond_and('"seed": -Infinity'),
    "NaN in an ignored field": pond_and('"x": NaN'),
    "1e999": pond_and('"fps": 1e999'),
    "-1e999": pond_and('"seed": -1e999'),
    "1e308 frames": pond_and('"frames": 1e308'),
    "gigantic exponent": pond_and(f'"steps": 1e{"9" * 1_000}'),
    "tiny": pond_and('"guidance_scale": 1e-999'),
    "minus zero": pond_and('"frames": -0'),
    "minus zero point zero": pond_and('"frames": -0.0'),
    "plus sign": pond_and('"steps": +30'),
    "leading zero": pond_and('"steps": 030'),
    "hexadecimal": pond_and('"steps": 0x1e'),
    "seed of 64 bits": pond_and(f'"seed": {2**63}'),
    "seed of 1,000 digits": pond_and(f'"seed": {"9" * 1_000}'),
    "seed of 50,000 digits": pond_and(f'"seed": {"9" * 50_000}'),
    "50,000 digits in an ignored field": pond_and(f'"x": {"9" * 50_000}'),
    "seed below -1": pond_and('"seed": -2'),
    "half a step": pond_and('"steps": 30.5'),
    # Nesting, names, types.
    "arrays in arrays": b"[" * BODY_LIMIT,
    "objects in objects": b'{"prompt":' * (BODY_LIMIT // 10),
    "closed arrays in a field": pond_and(f'"x": {"[" * 30_000}{"]" * 30_000}'),
    "prompt in a prompt": b'{"prompt": {"prompt": "a pond"}}',
    "prompt in an array": b'{"prompt": ["a pond"]}',
    "prompt twice": b'{"prompt": "a pond", "prompt": "a lake"}',
    "prompt twice, once escaped": b'{"prompt": "a pond", "pr\\u006fmpt": "a lake"}',
    "a name twice, deep down": pond_and('"x": {"y": 1, "y": 2}'),
    "PROMPT": b'{"PROMPT": "a pond"}',
    "prompt with a NUL": b'{"prompt\\u0000": "a pond"}',
    "__proto__": b'{"__proto__": {"prompt": "a pond"}}',
    "constructor": b'{"constructor": {"prototype": {"prompt": "a pond"}}}',
    "null prompt": b'{"prompt": null}',
    "false prompt": b'{"prompt": false}',
    "steps in a string": text(steps="30 "),
    "true steps": text(steps=True),
    "steps in an array": text(steps=[30]),
    "steps in an object": text(steps={"$gt": 0}),
    "fps in a string": text(fps="0x10"),
    "frames in an array": text(frames=[]),
    "false seed": text(seed=False),
    "seed in a string": text(seed="\u0669\u0668"),
    "guidance in an object": text(guidance_scale={}),
    "negative prompt in an array": text(negative_prompt=["blurry"]),
}


@pytest.mark.parametrize("path", ["/v1/mochi-1", "/v2/mochi-1"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_hostile_body_is_refused(server: Stack, path: str, body: bytes) -> None:
    client = server.http()
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert len(refusal(answer, 413 if len(body) > BODY_LIMIT else 400)) < 300
    assert client.get("/v1/get-user-credits").is_success


@pytest.mark.parametrize(
    "field",
    [
        '"\\ud800": 1',
        '"x": "\\ud800"',
        '"x": 1e999',
        '"": 1',
        '"x": "\\u0000"',
        '"\\r\\nset-cookie: a=b": 1',
        f'"{"x" * 50_000}": 1',
        f'"x": {"[" * 400}{"]" * 400}',
        ", ".join(f'"{n}": {n}' for n in range(4_000)),
    ],
    ids=["surrogate name", "surrogate", "1e999", "no name", "NUL", "header", "long name", "deep",
         "many"],
)  # fmt: skip
def test_odd_values_of_ignored_fields_do_no_harm(server: Stack, field: str) -> None:
    answer = server.http().post(
        "/v2/mochi-1",
        content=b'{%s, "frames": 1, "steps": 10, %s}' % (POND, field.encode()),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 200
    assert set(answer.headers) >= {"x-ignored-parameters"}
    assert "set-cookie" not in answer.headers
