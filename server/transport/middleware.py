"""ASGI middleware: CORS, Host, API key, HEAD, errors, security headers, log and metrics.

It validates the Host header, authenticates the API key where one is needed, and turns
every exception into a response. It is pure ASGI, so no byte of a body is read before the key is
checked.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import MochiError
from server.errors import STATUS, BadHostError, InvalidKeyError, MissingKeyError, OutOfFilesError
from server.keys.lookup import ApiKey, KeyLookup, digest
from server.keys.throttle import Throttle
from server.paths import HOSTED_NAMES, PROBES, is_public, is_signed
from server.transport.cors import Cors
from server.transport.responses import answer_for_bug, answer_for_exception
from server.transport.security_headers import Headers, security_headers
from server.transport.traffic import Traffic
from worker.errors import BrokerUnavailableError, StorageError
from worker.process.logs import LineLimit

_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")

_READ = (b"host", b"x-api-key", b"authorization", b"x-forwarded-proto", b"x-forwarded-host")
_Values = dict[bytes, list[str]]
_BODY_HEADERS = (b"content-length", b"transfer-encoding")

MOST_LOGGED_TEXT = 200
"""Characters of a client's text in a line of the log."""
MOST_REASON = 500
"""Characters of an error of ours there."""
MOST_WARNED_PEERS = 10
"""Addresses whose forwarded headers are warned of; any client can send them."""

_log = structlog.get_logger()


class Middleware:
    """Puts `base_url` and, unless the path is public, `api_key` into the request's state."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        key_lookup: KeyLookup,
        public_url: str,
        traffic: Traffic,
        trusts_proxies: bool,
        origins: tuple[str, ...] = (),
        also_public: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._respond: ASGIApp = Cors(self._answer, origins) if origins else self._answer
        self._traffic = traffic
        self._also_public = also_public
        self._key_lookup = key_lookup
        self._throttle = Throttle()
        self._limit = LineLimit("http.refused_more")
        self._public_url = public_url
        self._trusts_proxies = trusts_proxies
        self._warned_peers: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate, route and count a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        state = scope.setdefault("state", {})

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = status = message["status"]
                more = security_headers(scope["path"], status, scope["scheme"])
                if status >= HTTPStatus.BAD_REQUEST:
                    if status != HTTPStatus.UNPROCESSABLE_ENTITY:  # the answer, when it has FAILED
                        self._log_refusal(scope, status)
                    more += _closing(scope)
                message["headers"] = [*message["headers"], *more]
            await send(message)

        try:
            await self._respond(scope, receive, send_on)
        finally:
            if _has_begun(scope):
                self._traffic.note(scope, state["status"], time.perf_counter() - began)

    def _log_refusal(self, scope: Scope, status: int) -> None:
        if scope["path"] not in PROBES and self._limit.admits():
            _log.info("http.refused", status=status, **_fields(scope))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._admit(scope)
            if scope["method"] == "HEAD":
                await _answer_head(self._app, scope, receive, send)
            else:
                await self._app(scope, receive, send)
        except Exception as raised:
            error = OutOfFilesError() if _is_out_of_files(raised) else raised
            scope["state"]["reason"] = _reason(error)
            response = None if _has_begun(scope) else answer_for_exception(error, scope)
            if response is None:
                _log.exception("http.bug", **_fields(scope))
                if _has_begun(scope):
                    raise  # too late for a response: the connection must break
                response = answer_for_bug(scope["path"], _request_id(scope))
            await response(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        headers = _headers(scope)
        state = scope["state"]
        path = scope["path"]
        if path not in PROBES:  # a probe may be HTTP/1.0, without Host
            state["base_url"] = self._public_url or self._asked_url(scope, headers)
        if path in self._also_public or is_public(path):
            return
        has_key = headers[b"x-api-key"] or headers[b"authorization"]
        if has_key or not is_signed(scope):
            state["api_key"] = await self._find(_secret(headers), scope)

    def _asked_url(self, scope: Scope, headers: _Values) -> str:
        """Scheme and host as the client asked for them; a proxy that is not trusted hides them."""
        scheme, host = scope["scheme"], _host(headers)
        if host.endswith(HOSTED_NAMES):
            scheme = "https"  # which `mochi-server wrap` ends before it gets here
        forwarded = headers[b"x-forwarded-proto"]
        if not self._trusts_proxies:  # else one may send a host, which is not used
            forwarded = forwarded + headers[b"x-forwarded-host"]
        url = f"{scheme}://{host}"
        is_new = forwarded and _peer(scope) not in self._warned_peers
        if is_new and not {scheme, host}.issuperset(forwarded):
            self._warn_of_proxy(_peer(scope), url)
        return url

    def _warn_of_proxy(self, peer: str, links: str) -> None:
        if len(self._warned_peers) == MOST_WARNED_PEERS:
            return
        self._warned_peers.add(peer)
        _log.warning(
            "proxy.not_trusted",
            peer=peer,
            links=links,
            remedy="Set MOCHI_PUBLIC_URL, or MOCHI_TRUSTED_PROXIES and pass on Host",
        )

    async def _find(self, secret: str, scope: Scope) -> ApiKey:
        address = _peer(scope)
        sha256 = digest(secret)
        self._throttle.admit(address, sha256)
        try:
            key = await self._key_lookup.find(sha256)
        except InvalidKeyError:
            self._throttle.note_bad(address, sha256)
            raise
        self._throttle.note_good(sha256)
        return key


class _AnsweredError(Exception):
    """The response to a HEAD request has been sent."""


async def _answer_head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the headers of GET (RFC 9110, section 9.3.2): a stream of events does not begin."""
    headers = scope["headers"]

    async def send_head(message: Message) -> None:
        scope["method"] = "HEAD"
        await send(message)
        await send({"type": "http.response.body"})
        raise _AnsweredError

    scope["method"] = "GET"
    scope["headers"] = [pair for pair in headers if pair[0] != b"range"]  # it is for GET alone
    try:
        with suppress(_AnsweredError):
            await app(scope, receive, send_head)
    finally:
        scope["method"], scope["headers"] = "HEAD", headers


def _peer(scope: Scope) -> str:
    """Its address, or that of a trusted proxy's client."""
    client: tuple[str, int] | None = scope.get("client")
    return client[0] if client else ""  # a Unix socket has none


def _is_out_of_files(error: Exception) -> bool:
    cause = error.__cause__ if isinstance(error, StorageError) else error
    return isinstance(cause, OSError) and cause.errno in {errno.EMFILE, errno.ENFILE}


def _reason(error: Exception) -> str | None:
    """For the log. A 400 repeats no text of its client, but numbers and types."""
    if isinstance(error, OutOfFilesError):
        return error.remedy
    if isinstance(error, BrokerUnavailableError) and error.is_refusal:
        return error.reason
    if isinstance(error, MochiError) and STATUS[type(error)] == HTTPStatus.BAD_REQUEST:
        return str(error)[:MOST_REASON]
    return None


def _fields(scope: Scope) -> dict[str, str]:
    """For a line of the log."""
    fields = {
        "reason": scope["state"].get("reason"),
        "method": scope["method"],
        "path": scope["path"][:MOST_LOGGED_TEXT],
        "origin": _origin(scope)[:MOST_LOGGED_TEXT],
        "request_id": (_request_id(scope) or "")[:MOST_LOGGED_TEXT],
    }
    return {name: text for name, text in fields.items() if text}


def _origin(scope: Scope) -> str:
    """Of the page that calls."""
    return next(
        (value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"), ""
    )


def _has_begun(scope: Scope) -> bool:
    """Whether the response has."""
    return "status" in scope["state"]


def _request_id(scope: Scope) -> str | None:
    """The id of the accepted request, or the one in the path."""
    accepted: str | None = scope["state"].get("request_id")
    return accepted or scope.get("path_params", {}).get("request_id")


def _closing(scope: Scope) -> Headers:
    """Close the connection after a refusal: the rest of the body may never end."""
    has_body = any(name in _BODY_HEADERS for name, _ in scope["headers"])
    return ((b"connection", b"close"),) if has_body else ()


def _headers(scope: Scope) -> _Values:
    """The headers of _READ, in one pass: this is for every poll."""
    found: _Values = {name: [] for name in _READ}
    for name, value in scope["headers"]:
        if name in found:
            found[name].append(value.decode("latin-1"))
    return found


def _host(headers: _Values) -> str:
    host = ",".join(headers[b"host"])
    if not _HOST.fullmatch(host):
        raise BadHostError("The Host header must be a host name or address, with or without port.")
    return host


def _secret(headers: _Values) -> str:
    given = {*_stripped(headers[b"x-api-key"])}
    for value in headers[b"authorization"]:
        scheme, _, secret = value.partition(" ")
        given |= {*_stripped([secret if scheme.lower() == "bearer" else ""])}
    if not given:
        raise _missing(headers[b"authorization"])
    if len(given) > 1:
        raise InvalidKeyError
    return given.pop()


def _missing(values: Iterable[str]) -> MissingKeyError:
    """The error without a key, by the Authorization headers that came."""
    if all(value.split()[0].lower() == "bearer" for value in _stripped(values)):
        return MissingKeyError()
    return MissingKeyError("Authorization must be `Bearer KEY`; or send x-api-key: KEY")


def _stripped(values: Iterable[str]) -> list[str]:
    return [value.strip() for value in values if value.strip()]
