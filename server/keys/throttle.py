"""Rate-limits failed authentication per address, in the memory of each gateway.

A key has 256 random bits and cannot be guessed. The limit spares the broker the look-ups, and the
log shows the attempt. An address over the limit has some look-ups left, so that a good key that
this gateway has not seen yet gets through.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

import structlog

from server.errors import TooManyBadKeysError

MOST_BAD_KEYS = 30
"""Per address and window."""
WINDOW_SECONDS = 60.0
MOST_LOOKUPS = 100
"""In a second, of unknown keys from an address over the limit."""
GOOD_SECONDS = 86_400.0
"""How long a key that once worked is exempt, as other clients may share its address (NAT)."""
MOST_ADDRESSES = 10_000
MOST_GOOD_KEYS = 10_000
IPV6_PREFIX = 64
"""The smallest network that a provider assigns to a subscriber."""
MOST_ADDRESS_LENGTH = 64
"""Longer than any address: a proxy may pass on other text."""

_log = structlog.get_logger()


@dataclass
class _Window:
    """The distinct bad keys of one address: repeating the same one is no guessing."""

    ends_at: float
    bad_keys: set[str] = field(default_factory=set)
    second: int = 0
    lookups: int = 0

    def take_lookup(self, now: float) -> bool:
        """Take one of the look-ups of this second; False if there is none."""
        if self.second != int(now):
            self.second, self.lookups = int(now), 0
        self.lookups += 1
        return self.lookups <= MOST_LOOKUPS


class Throttle:
    """Counts bad keys by address, and remembers good keys, all by their digests.

    Both are kept oldest first, so expiry is cheap.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._windows: dict[str, _Window] = {}
        self._good_until: dict[str, float] = {}

    def admit(self, address: str, sha256: str) -> None:
        """Check that the key may be looked up.

        Raises:
            TooManyBadKeysError: the address sent too many bad keys, this one never worked, and
                there is no look-up left in this second.
        """
        if not self._windows:
            return  # nearly always
        now = self._monotonic()
        window = self._windows.get(_network(address))
        if window is None or len(window.bad_keys) < MOST_BAD_KEYS or now >= window.ends_at:
            return
        is_known = sha256 in window.bad_keys or self._good_until.get(sha256, now) > now
        if not is_known and not window.take_lookup(now):
            raise TooManyBadKeysError(1)

    def note_good(self, sha256: str) -> None:
        now = self._monotonic()
        self._good_until.pop(sha256, None)
        self._good_until[sha256] = now + GOOD_SECONDS
        if len(self._good_until) > MOST_GOOD_KEYS:
            del self._good_until[next(iter(self._good_until))]

    def note_bad(self, address: str, sha256: str) -> None:
        """Count a key that is unknown, revoked or expired.

        Raises:
            TooManyBadKeysError: the address is over the limit.
        """
        now = self._monotonic()
        if self._good_until.pop(sha256, now) > now:
            return  # revoked or expired, not guessed
        network = _network(address)
        window = self._windows.get(network)
        if window is None or now >= window.ends_at:
            window = self._open(network, now)
        if sha256 in window.bad_keys:
            return
        if len(window.bad_keys) >= MOST_BAD_KEYS:
            raise TooManyBadKeysError(math.ceil(window.ends_at - now))
        window.bad_keys.add(sha256)
        if len(window.bad_keys) == MOST_BAD_KEYS:
            _log.warning("keys.guessed", address=network, seconds=math.ceil(window.ends_at - now))

    def _open(self, network: str, now: float) -> _Window:
        self._windows.pop(network, None)
        while self._windows:
            oldest = next(iter(self._windows))
            if len(self._windows) < MOST_ADDRESSES and now < self._windows[oldest].ends_at:
                break
            del self._windows[oldest]
        window = self._windows[network] = _Window(now + WINDOW_SECONDS)
        return window


def _network(address: str) -> str:
    """The address; for IPv6 its /64, as one subscriber has all of it."""
    address = address[:MOST_ADDRESS_LENGTH]
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ip_network((int(parsed), IPV6_PREFIX), strict=False))
