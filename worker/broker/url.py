"""Parses `MOCHI_REDIS_URL`: a server, or Sentinels that name the master."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from redis import ConnectionPool
from redis.connection import SSLConnection, parse_url
from redis.exceptions import RedisError

SENTINEL_FORM = "sentinel://[user:password@]host1:26379,host2:26379/NAME[/DB][?options]"
SENTINEL_PORT = 26379

_SENTINEL = re.compile(
    r"sentinel(?P<tls>s?)://(?:(?P<credentials>[^/?\s]*)@)?(?P<hosts>[^/?@\s]+)"
    r"/(?P<name>[^/?\s]+)(?:/(?P<db>\d*))?(?:\?(?P<options>\S*))?"
)
_RAW_PASSWORD = re.compile(r"[^?]*[#/[\]][^?]*@|[^/@?]*:[^/@?]*\?[^@&=]*@")
_BAD_OPTION = "An option in it has an invalid value"
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_HOME_FILE = re.compile(rf"(?<=[?&])((?:{'|'.join(_FILES)})=)~(?=/)")


class AddressError(ValueError):
    """The URL cannot be used. The message quotes nothing that may be a password."""


@dataclass(frozen=True)
class Address:
    """Address of the broker.

    Attributes:
        options: redis-py's, for connections to the server; without host if there are Sentinels.
        sentinels: host and port of each; none if the URL names the server itself.
        sentinel_options: redis-py's, for connections to the Sentinels.
        name: the Sentinels' name of the master.
    """

    options: dict[str, Any] = field(repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)
    name: str = ""


def parse(url: str) -> Address:
    """Read a URL of one of the schemes redis, rediss, valkey, valkeys, unix, sentinel, sentinels.

    Raises:
        AddressError: it has another form, an unknown option, or a file that cannot be read.
    """
    url = standard(url)
    scheme, _, rest = url.partition("://")
    if scheme != "unix" and _RAW_PASSWORD.match(rest):
        raise AddressError(
            "Percent-encode special characters of user and password: # is %23, / is %2F, [ is %5B, "
            "] is %5D, ? is %3F, @ is %40"
        )
    is_plain = not url.startswith("sentinel")
    address = Address(_parse_plain(url)) if is_plain else _parse_sentinels(url)
    _check_options(address.options)
    return address


def standard(url: str) -> str:
    """The URL as redis-py knows it: with Redis' name of its scheme, and no `~` before a file."""
    home = quote(os.path.expanduser("~"))  # noqa: PTH111 (`Path.home` may raise)
    url = _HOME_FILE.sub(lambda match: match[1] + home, url)
    return "redis" + url.removeprefix("valkey") if url.startswith("valkey") else url


def shown(url: str) -> str:
    """The URL without credentials and options, for logs."""
    scheme, _, rest = url.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if rest else ""


def _parse_plain(url: str) -> dict[str, Any]:
    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        # The error's text may quote a part of the password.
        raise AddressError("The port or an option in it is invalid") from None
    return options


def _parse_sentinels(url: str) -> Address:
    """Reads a plain URL for each host; all but host and port is the same."""
    match = _SENTINEL.fullmatch(url)
    if match is None:
        raise AddressError(f"The form must be {SENTINEL_FORM}")
    tls, credentials, hosts, name, db, query = match.groups(default="")
    sentinels = []
    for host in hosts.split(","):
        options = _parse_plain(f"redis{tls}://{credentials}@{host}/{db or 0}?{query}")
        if "host" not in options:
            raise AddressError(f"The form must be {SENTINEL_FORM}")
        sentinels.append((options.pop("host"), options.pop("port", SENTINEL_PORT)))
    own = {key: options.pop(f"sentinel_{key}", None) for key in ("username", "password")}
    tls_options = {key: value for key, value in options.items() if key.startswith("ssl_")}
    return Address(options, tuple(sentinels), own | tls_options | {"ssl": bool(tls)}, name)


def _check_options(options: dict[str, Any]) -> None:
    """redis-py would find errors only at the first command, in every process."""
    is_tls = options.get("connection_class") is SSLConnection
    if not is_tls and any(name.startswith("ssl_") for name in options):
        raise AddressError("With TLS options it must begin with rediss:// or sentinels://")
    try:
        ConnectionPool(**options).make_connection()
    except TypeError as error:
        name = re.search(r"argument '(\w+)'", str(error))
        raise AddressError(f"There is no option {name[1]}" if name else _BAD_OPTION) from None
    except (ValueError, RedisError):
        raise AddressError(_BAD_OPTION) from None
    for file in _FILES:
        if file in options and not os.access(options[file], os.R_OK):
            raise AddressError(f"{file}: {options[file]} cannot be read")
