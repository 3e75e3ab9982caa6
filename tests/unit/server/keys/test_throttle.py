"""The throttle of failed authentication, with a clock of its own."""

from __future__ import annotations

from contextlib import suppress
from itertools import count, islice

import pytest
from structlog.testing import capture_logs

from server.errors import TooManyBadKeysError
from server.keys.throttle import (
    GOOD_SECONDS,
    MOST_ADDRESSES,
    MOST_BAD_KEYS,
    MOST_GOOD_KEYS,
    MOST_LOOKUPS,
    WINDOW_SECONDS,
    Throttle,
)

GUESSER = "192.0.2.1"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> Throttle:
    return Throttle(clock)


_numbers = count()


def guess(throttle: Throttle, times: int = MOST_BAD_KEYS, address: str = GUESSER) -> None:
    for number in islice(_numbers, times):
        with suppress(TooManyBadKeysError):
            throttle.note_bad(address, f"bad-{number}")


def is_admitted(throttle: Throttle, key: str = "unknown", address: str = GUESSER) -> bool:
    """However often it comes within a second."""
    try:
        for _ in range(MOST_LOOKUPS + 1):
            throttle.admit(address, key)
    except TooManyBadKeysError:
        return False
    return True


def test_so_many_bad_keys_may_come_and_no_more(throttle: Throttle) -> None:
    guess(throttle, MOST_BAD_KEYS - 1)
    assert is_admitted(throttle)
    guess(throttle, 1)
    assert not is_admitted(throttle)
    assert is_admitted(throttle, address="192.0.2.2")


def test_a_client_that_goes_on_with_one_dead_key_does_not_block_its_address(
    throttle: Throttle,
) -> None:
    for _ in range(3 * MOST_BAD_KEYS):
        throttle.note_bad(GUESSER, "dead")
    assert is_admitted(throttle, "another")
    guess(throttle)
    assert not is_admitted(throttle, "another")
    assert is_admitted(throttle, "dead")  # it is told 401, as before


def test_guesses_at_the_same_time_are_no_more_than_one_after_the_other(throttle: Throttle) -> None:
    """All were admitted before the first of them was found bad."""
    told = []
    for number in range(MOST_BAD_KEYS + 5):
        try:
            throttle.note_bad(GUESSER, f"at once {number}")
            told.append(401)
        except TooManyBadKeysError:
            told.append(429)
    assert told == [401] * MOST_BAD_KEYS + [429] * 5


def test_the_wait_is_what_is_left_of_the_minute(throttle: Throttle, clock: Clock) -> None:
    guess(throttle, 1)
    clock.now += 20.5
    guess(throttle)
    with pytest.raises(TooManyBadKeysError, match="Try again in 40 seconds") as error:
        throttle.note_bad(GUESSER, "unknown")
    assert error.value.retry_seconds == 40
    clock.now += 39.4
    assert not is_admitted(throttle)
    clock.now += 0.1
    assert is_admitted(throttle)
    guess(throttle, MOST_BAD_KEYS - 1)
    assert is_admitted(throttle)


def test_a_key_that_was_good_goes_on_until_it_is_bad(throttle: Throttle, clock: Clock) -> None:
    throttle.note_good("good")
    guess(throttle)
    assert is_admitted(throttle, "good")
    throttle.note_bad(GUESSER, "good")  # revoked
    assert not is_admitted(throttle, "good")


def test_a_new_good_key_gets_through_while_its_address_guesses(
    throttle: Throttle, clock: Clock
) -> None:
    for second in range(120):
        guess(throttle, MOST_BAD_KEYS)
        for _ in range(60):
            throttle.admit(GUESSER, f"guess {second}")
        throttle.admit(GUESSER, "good, as the look-up will show")
        clock.now += 1


def test_many_guesses_a_second_are_not_all_looked_up(throttle: Throttle, clock: Clock) -> None:
    guess(throttle)
    for _ in range(MOST_LOOKUPS):
        throttle.admit(GUESSER, "guess")
    with pytest.raises(TooManyBadKeysError, match="in 1 second") as error:
        throttle.admit(GUESSER, "guess")
    assert error.value.retry_seconds == 1
    clock.now += 1
    throttle.admit(GUESSER, "guess")


def test_a_key_is_remembered_from_its_last_use_on(throttle: Throttle, clock: Clock) -> None:
    throttle.note_good("good")
    clock.now += GOOD_SECONDS - 1
    throttle.note_good("good")
    clock.now += GOOD_SECONDS - 1
    guess(throttle)
    assert is_admitted(throttle, "good")
    clock.now += 1
    assert not is_admitted(throttle, "good")


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:0:ffff::", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "", True),
        ("unknown", "unknown", True),
        ("unknown", "hidden", False),
        ("x" * 64, "x" * 30_000, True),
    ],
)
def test_who_has_one_address_of_a_network_has_all(
    throttle: Throttle, one: str, other: str, are_one: bool
) -> None:
    guess(throttle, address=one)
    assert is_admitted(throttle, address=other) is not are_one


def test_memory_is_bounded_and_the_oldest_is_forgotten_first(
    throttle: Throttle, clock: Clock
) -> None:
    guess(throttle, address="2001:db8::")
    for number in range(MOST_ADDRESSES - 1):
        throttle.note_bad(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "bad")
    assert not is_admitted(throttle, address="2001:db8::")
    guess(throttle, address="192.0.2.9")
    assert is_admitted(throttle, address="2001:db8::")
    assert not is_admitted(throttle, address="192.0.2.9")
    assert len(throttle._windows) == MOST_ADDRESSES
    clock.now += WINDOW_SECONDS
    throttle.note_bad(GUESSER, "bad")
    assert len(throttle._windows) == 1


def test_good_keys_are_bounded_too_and_the_longest_unused_goes_first(throttle: Throttle) -> None:
    for number in range(MOST_GOOD_KEYS):
        throttle.note_good(f"good-{number}")
    throttle.note_good("good-0")
    throttle.note_good("another")
    guess(throttle)
    assert len(throttle._good_until) == MOST_GOOD_KEYS
    assert is_admitted(throttle, "good-0")
    assert not is_admitted(throttle, "good-1")


def test_the_log_says_once_who_guesses_and_nothing_of_what(throttle: Throttle) -> None:
    with capture_logs() as log:
        guess(throttle, 3 * MOST_BAD_KEYS)
    assert log == [
        {"event": "keys.guessed", "log_level": "warning", "address": GUESSER, "seconds": 60}
    ]
