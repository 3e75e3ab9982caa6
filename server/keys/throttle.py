"""Slows down who guesses keys. In the memory of one gateway: each one counts for itself.

A key has 256 random bits, so nobody guesses one. What it spares is the broker, which would have to
look each guess up, and it makes the guessing seen in the log.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

import structlog

from server.errors import TooManyBadKeysError

MOST_BAD_KEYS = 30
"""From one address, within the window."""
WINDOW_SECONDS = 60.0
GOOD_SECONDS = 86_400.0
"""So long a key goes on that was good, whatever others try from its address, as behind a NAT."""
MOST_ADDRESSES = 10_000
MOST_GOOD_KEYS = 10_000
IPV6_PREFIX = 64
"""What one subscriber has at least."""
MOST_ADDRESS_LENGTH = 64
"""Longer than any: a proxy may pass on what is none."""

_log = structlog.get_logger()


@dataclass
class _Window:
    """The bad keys of one address, each once: who asks again and again with one guesses nothing."""

    ends_at: float
    bad_keys: set[bytes] = field(default_factory=set)


class Throttle:
    """Counts bad keys by address, and remembers keys that were good, as digests.

    Both are kept oldest first, which makes it cheap to forget.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._windows: dict[str, _Window] = {}
        self._good_until: dict[bytes, float] = {}

    def admit(self, address: str, secret: str) -> None:
        """Do nothing, if the key may be looked up. It may be bad all the same.

        Raises:
            TooManyBadKeysError: too many bad ones came from there, and it was not good lately.
        """
        if not self._windows:
            return  # nearly always
        now = self._monotonic()
        window = self._windows.get(_network(address))
        if window is None or len(window.bad_keys) < MOST_BAD_KEYS or now >= window.ends_at:
            return
        digest = _digest(secret)
        if digest not in window.bad_keys and self._good_until.get(digest, now) <= now:
            raise TooManyBadKeysError(math.ceil(window.ends_at - now))

    def note_good(self, secret: str) -> None:
        """The key was good just now."""
        now = self._monotonic()
        digest = _digest(secret)
        self._good_until.pop(digest, None)
        self._good_until[digest] = now + GOOD_SECONDS
        if len(self._good_until) > MOST_GOOD_KEYS:
            del self._good_until[next(iter(self._good_until))]

    def note_bad(self, address: str, secret: str) -> None:
        """The key is not one of ours, or no longer.

        Raises:
            TooManyBadKeysError: others came from there while this one was looked up.
        """
        now = self._monotonic()
        digest = _digest(secret)
        if self._good_until.pop(digest, now) > now:
            return  # it was taken back, and is no guess
        network = _network(address)
        window = self._windows.get(network)
        if window is None or now >= window.ends_at:
            window = self._open(network, now)
        if digest in window.bad_keys:
            return
        if len(window.bad_keys) >= MOST_BAD_KEYS:
            raise TooManyBadKeysError(math.ceil(window.ends_at - now))
        window.bad_keys.add(digest)
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
    """The address, of IPv6 its /64: whoever has one address there has all."""
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


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
