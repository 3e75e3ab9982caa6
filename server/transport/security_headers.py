"""Security and cache headers of every response."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from server.page.swagger import SCRIPT_HASH
from server.paths import DOCS_FOLDER, DOCS_PAGE, FRONT_PAGE, PAGE_FOLDER, VIDEO_FOLDER

Headers = tuple[tuple[bytes, bytes], ...]
"""As ASGI has them."""

_ALWAYS: Headers = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),  # a link to a video holds its signature
)
_POLICY = b"content-security-policy"
_NOTHING = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# A browser that opens a video shows it on a page of its own, under this policy.
_MEDIA = _NOTHING + b"; media-src 'self'; style-src 'unsafe-inline'"
_PICTURE = _NOTHING + b"; img-src 'self'; style-src 'unsafe-inline'"
_DOCS = (
    _NOTHING + b"; connect-src 'self'; img-src 'self' data:; style-src 'self'; "
    b"script-src 'self' '%b'" % SCRIPT_HASH.encode()
)
# Nothing `unsafe-`: the page at / has scripts and styles in files, and turns no text into markup.
_FRONT = (
    _NOTHING.decode() + "; connect-src 'self'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:{0}; require-trusted-types-for 'script'; trusted-types 'none'; "
    "media-src 'self'{0}"
)
_ONLY_TLS: Headers = ((b"strict-transport-security", b"max-age=31536000"),)

_PLAIN_ANSWER: Headers = (*_ALWAYS, (_POLICY, _NOTHING), (b"cache-control", b"no-store"))
_PAGE: Headers = (*_ALWAYS, (_POLICY, _DOCS))
_ASSET: Headers = (*_ALWAYS, (_POLICY, _NOTHING))
# Revalidated at each visit: after an upgrade, page and scripts must be of one version.
_ASKED_ANEW = (b"cache-control", b"no-cache")
_FRONT_PAGE: Headers = (*_ALWAYS, _ASKED_ANEW)
_PAGE_FILE: Headers = (*_ASSET, _ASKED_ANEW)
_VIDEO: Headers = (*_ALWAYS, (_POLICY, _MEDIA))
_IMAGE: Headers = (*_ALWAYS, (_POLICY, _PICTURE))


def security_headers(path: str, status: int, scheme: str | None) -> Headers:
    """The headers to add to a response.

    The route of a video sets its own cache headers, and that of the page at / its own policy.
    """
    headers = _PLAIN_ANSWER
    if status < HTTPStatus.BAD_REQUEST:
        if path.startswith(VIDEO_FOLDER):
            headers = _IMAGE if path.endswith((".gif", ".jpg")) else _VIDEO
        elif path == FRONT_PAGE:
            headers = _FRONT_PAGE
        elif path.startswith(PAGE_FOLDER):
            headers = _PAGE_FILE
        elif path == DOCS_PAGE:
            headers = _PAGE
        elif path.startswith(DOCS_FOLDER):
            headers = _ASSET
    return headers + _ONLY_TLS if scheme == "https" else headers


def front_page_policy(video_origins: Iterable[str]) -> str:
    """The content security policy of the page at /, which shows videos from these origins too."""
    return _FRONT.format("".join(f" {origin}" for origin in video_origins))
