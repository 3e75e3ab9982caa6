"""Reads request bodies: size and time limits, strict JSON, and forms."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import AsyncGenerator, Container
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from models.errors import InvalidParametersError
from server.errors import (
    BodyTooLargeError,
    EncodedBodyError,
    JsonAsFormError,
    MalformedBodyError,
    WrongContentTypeError,
)

NO_FILE = "Mochi 1 makes videos from text. Send no files, and no `input_reference`."
_NOT_UTF8 = "The body is not a form: it is not UTF-8."
BODY_SECONDS = 10.0
JSON = "application/json"
MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"
_BOUNDARY = re.compile(rb"[\w'()+,./:=? -]{1,70}")
"""As RFC 2046 has it."""
MOST_FIELDS = 100
"""Of a form."""


async def read_fields(
    request: Request, most_bytes: int, optional: Container[str], example: str = "prompt"
) -> dict[str, Any]:
    """The fields of a body, from JSON or a form. Those of a form are text.

    One of `optional` that is null, or empty in a form, is as if it were not there. `example`: a
    field for the message of a refusal.

    Raises:
        WrongContentTypeError: it is declared to be neither, or is JSON declared to be a form.
        EncodedBodyError, BodyTooLargeError, MalformedBodyError: see `read_bytes` and
            `parse_object`.
        InvalidParametersError: the form holds a file.
    """
    match media_type(request):
        case "application/json":
            fields, nothing = parse_object(await read_bytes(request, most_bytes), example), None
        case "multipart/form-data":
            form = await _parse_multipart(request, await read_bytes(request, most_bytes))
            fields, nothing = _unique(form), ""
        case "application/x-www-form-urlencoded":
            form = _parse_urlencoded(await read_bytes(request, most_bytes))
            fields, nothing = _unique(form), ""
        case _:
            raise WrongContentTypeError
    return {
        name: value for name, value in fields.items() if value != nothing or name not in optional
    }


async def read_optional_fields(
    request: Request, most_bytes: int, optional: Container[str], example: str
) -> dict[str, Any]:
    """The same, where a request without a body has no fields. Raises as `read_fields`."""
    headers = request.headers
    if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
        return {}
    return await read_fields(request, most_bytes, optional, example)


def media_type(request: Request) -> str:
    """The declared content type, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def parse_object(body: bytes, example: str = "prompt") -> dict[str, Any]:
    """Decode strictly: one object, no NaN, no name twice, no depth beyond the parser's.

    In UTF-8, with or without a byte order mark, which RFC 8259 lets a parser ignore.

    Raises:
        MalformedBodyError: the text says what is wrong, and where.
    """
    like = f'like {{"{example}": "…"}}'
    if not body.strip():
        raise MalformedBodyError(f"The body is empty: send a JSON object, {like}.")
    try:
        # Not "utf-8-sig": its codec would be imported from the disk by the first request.
        text = body.removeprefix(codecs.BOM_UTF8).decode()
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise MalformedBodyError(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except UnicodeDecodeError:
        raise MalformedBodyError("The body is not JSON: it is not UTF-8.") from None
    except RecursionError:
        raise MalformedBodyError("The body is nested too deeply.") from None
    except ValueError:  # Python's limit on the digits of a number
        raise MalformedBodyError("The body holds a number with too many digits.") from None
    if not isinstance(value, dict):
        raise MalformedBodyError(f"The body must be a JSON object, {like}.")
    return value


async def read_bytes(request: Request, most_bytes: int) -> bytes:
    """The raw body.

    Raises:
        EncodedBodyError: it is compressed.
        BodyTooLargeError: it is longer than `most_bytes`; no more than that is ever held.
        MalformedBodyError: it ends early, or takes too long.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise EncodedBodyError
    too_large = BodyTooLargeError(f"The body is over the limit of {most_bytes:,} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise too_large
    except TimeoutError:
        raise MalformedBodyError(
            f"The body did not arrive within {BODY_SECONDS:g} seconds."
        ) from None
    except ClientDisconnect:
        raise MalformedBodyError("The body ends early.") from None
    return bytes(body)


async def _parse_multipart(request: Request, body: bytes) -> list[tuple[str, Any]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise MalformedBodyError("The body is not a form: its content type has no valid boundary.")
    # Without the client's charset: it names a codec of Python, and some take minutes.
    content_type = b'%b; boundary="%b"' % (MULTIPART.encode(), boundary)
    headers = Headers(raw=[(b"content-type", content_type)])
    parser = MultiPartParser(
        headers, stream(), max_fields=MOST_FIELDS, max_files=1, max_part_size=len(body)
    )
    try:
        form = await parser.parse()
    except (MultiPartException, MultipartParseError) as error:
        raise MalformedBodyError(f"The body is not a form: {error}") from None
    items = form.multi_items()
    await form.close()
    if not all(isinstance(value, str) for _, value in items):
        raise InvalidParametersError(NO_FILE)
    _decode_form(body)
    return items


def _decode_form(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise MalformedBodyError(_NOT_UTF8) from None


def _parse_urlencoded(body: bytes) -> list[tuple[str, Any]]:
    if body.lstrip().startswith(b"{"):
        raise JsonAsFormError
    text = _decode_form(body)
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except UnicodeDecodeError:
        raise MalformedBodyError(_NOT_UTF8) from None
    except ValueError:
        raise MalformedBodyError(
            f"The body is not a form: it has more than {MOST_FIELDS} fields."
        ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBodyError(f"The body is not JSON: {name} is not a JSON number.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise MalformedBodyError("The body names a field twice.")
    return values
