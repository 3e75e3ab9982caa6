"""The addresses that webhooks may be sent to: the rules of the SSRF guard."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
_INSIDE = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",
            "100.64.0.0/10",  # carriers' NAT; also Alibaba's metadata
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's host
            "169.254.0.0/16",  # link-local; also most clouds' metadata
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocols; also Oracle's metadata
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            "2001::/23",  # protocols, Teredo among them
            "2001:db8::/32",
            "2002::/16",  # 6to4: any IPv4 address
            "3fff::/20",
        ),
    )
)
"""IANA's registries of special addresses. Python's own lists differ by version."""
_GLOBAL_V6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)


def is_outside(address: Address) -> bool:
    """Whether the address is globally routable."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_outside(IPv4Address(address.packed[-4:]))
        if address not in _GLOBAL_V6:
            return False
    return not any(address in network for network in _INSIDE)


def is_host(text: str) -> bool:
    """Whether this is a DNS name, or an address without brackets."""
    return bool(_HOST.fullmatch(text)) or literal_address(text) is not None


class Guard:
    """Admits global addresses, and hosts and networks that the operator allows."""

    def __init__(self, allowed: str = "") -> None:
        """Read `MOCHI_WEBHOOK_ALLOW`.

        Raises:
            ValueError: an item is neither a host name nor an address nor a network.
        """
        self._names: set[str] = set()
        self._networks: list[IPv4Network | IPv6Network] = []
        for item in filter(None, map(str.strip, allowed.split(","))):
            try:
                self._networks.append(ip_network(item))
            except ValueError as error:
                if "/" in item or literal_address(item) or not _HOST.fullmatch(item):
                    raise ValueError(f"{item}: {error}") from None
                self._names.add(_plain(item))

    def admits(self, host: str, address: str) -> bool:
        """Whether `address`, to which `host` resolves, may be connected to."""
        parsed = ip_address(address)
        is_allowed = any(parsed in network for network in self._networks)
        return is_allowed or _plain(host) in self._names or is_outside(parsed)

    def refuses(self, host: str) -> bool:
        """Whether `host` is an address, in any spelling, that may not be connected to.

        So is `localhost`, which is no name of another machine (RFC 6761, section 6.3).
        """
        spelled = literal_address(host)
        is_local = f".{_plain(host)}".endswith(".localhost")
        addresses = [spelled] if spelled else ["127.0.0.1", "::1"] if is_local else []
        return bool(addresses) and not any(self.admits(host, each) for each in addresses)


def _plain(host: str) -> str:
    return host.lower().rstrip(".")


def literal_address(host: str) -> str | None:
    """The address that `host` spells, as the system resolver reads it; None for a name."""
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(_plain(host)))  # 127.1, 0x7f000001, 017700000001
    except (OSError, UnicodeError):
        return None
