"""Validates the `webhook_url` of a submit."""

from __future__ import annotations

from collections.abc import Iterable

import httpx2

from models.errors import InvalidParametersError
from server.webhooks.address_rules import Guard, is_host, literal_address

FIELD = "webhook_url"
MOST_LENGTH = 2048
MOST_PORT = 65535
_THIS_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})
_RULE = (
    f"`{FIELD}` must be an http or https URL of at most {MOST_LENGTH:,} characters, with a host "
    "and without user, password or `#`"
)


def webhook_url(values: Iterable[object], guard: Guard) -> str | None:
    """The URL among the values that came, if there is one. Empty text and None stand for none.

    Raises:
        InvalidParametersError: it breaks the rule, leads inside, or there are two.
    """
    given = [url for url in values if url not in (None, "")]
    if not given:
        return None
    if any(url != given[0] for url in given):
        raise _wrong(f"`{FIELD}` came more than once with different values: send one.")
    host = _host(given[0])
    if guard.refuses(host):
        raise _wrong(
            f"`{FIELD}` must not lead to an address that is private, local or special. Use a "
            f"public address, or ask the operator to {_permission(host)}."
        )
    return str(given[0])


def _wrong(text: str) -> InvalidParametersError:
    return InvalidParametersError.of({FIELD: text})


def _permission(host: str) -> str:
    """What admits a host. This machine is named: it is where receivers are tried out."""
    name = literal_address(host) or host.lower().rstrip(".")
    if name in _THIS_MACHINE:
        return f"start the server with MOCHI_WEBHOOK_ALLOW={name}"
    return "allow this one in `MOCHI_WEBHOOK_ALLOW`"


def _host(given: object) -> str:
    """The host as it is looked up: international names in ASCII."""
    if not isinstance(given, str):
        raise _wrong(f"{_RULE}; got no string.")
    if len(given) > MOST_LENGTH:
        raise _wrong(f"{_RULE}; got {len(given):,} characters.")
    try:
        url = httpx2.URL(given)
    except (httpx2.InvalidURL, ValueError):
        raise _wrong(f"{_RULE}; got no URL.") from None
    if url.scheme not in {"http", "https"}:
        raise _wrong(f"{_RULE}; got another scheme, or none.")
    if url.userinfo:
        raise _wrong(f"{_RULE}; got a user or password.")
    if "#" in given:
        raise _wrong(f"{_RULE}; got a `#`.")
    has_port = url.port is None or 0 < url.port <= MOST_PORT
    host = url.raw_host.decode("ascii")  # `url.host` decodes Punycode, which may be invalid
    if not is_host(host) or not has_port:
        raise _wrong(f"{_RULE}; got no host, or no such host or port.")
    return host
