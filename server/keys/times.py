"""Points in time and lengths of it, as people write them and as the broker keeps them."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta

from redis import Redis
from redis.client import Pipeline

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
LONGEST = timedelta(days=36_500)
LATEST_YEAR = 9000
"""What is later than that is a slip, and no room is left to add to it."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def parse_duration(text: str) -> timedelta:
    """What `90s`, `15m`, `24h`, `30d` or `0` mean.

    Raises:
        ValueError: saying which forms there are.
    """
    found = re.fullmatch(r"([0-9]{1,9})([smhd])|0", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no length of time: write 90s, 15m, 24h or 30d.")
    number, unit = found.groups(default="")
    duration = timedelta(**{UNITS[unit]: int(number)}) if unit else timedelta()
    if duration > LONGEST:
        raise ValueError(f"{text!r} is more than {LONGEST.days} days.")
    return duration


def parse_moment(text: str) -> datetime:
    """What `2027-01-31` (its first moment, in UTC) or `2027-01-31T18:00:00Z` mean.

    Raises:
        ValueError: saying which forms there are.
    """
    with suppress(ValueError):
        return in_utc(datetime.fromisoformat(text.strip()))
    raise ValueError(f"{text!r} is no date: write 2027-01-31, or 2027-01-31T18:00:00Z.")


def parse_end(text: str, now: datetime) -> datetime:
    """When something ends: a length of time from `now` on, or a date that is still to come.

    Raises:
        ValueError: saying which forms there are.
    """
    try:
        end = now + parse_duration(text)
    except ValueError:
        try:
            end = parse_moment(text)
        except ValueError:
            raise ValueError(
                f"{text!r} is neither a length of time, like 12h or 30d, nor a date, like "
                "2027-01-31 or 2027-01-31T18:00:00Z."
            ) from None
    if end <= now:
        raise ValueError(f"{text!r} is over already: now it is {written(now)}.")
    return end


def in_utc(moment: date) -> datetime:
    """A date, or a time that names no zone, is meant in UTC.

    Raises:
        ValueError: it is too early or too late to be meant.
    """
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time())
    with suppress(OverflowError):
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        if moment >= EPOCH and moment.year < LATEST_YEAR:
            return moment
    raise ValueError(f"It must be from {EPOCH.year} to {LATEST_YEAR - 1}.")


def written(moment: datetime) -> str:
    """To the second, for people."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def broker_time(redis: Redis | Pipeline) -> datetime:
    """By the clock that counts."""
    seconds, microseconds = redis.time()
    return from_ms(seconds * 1000 + microseconds // 1000)


def to_ms(moment: datetime) -> int:
    """As the broker keeps it: ms since 1970."""
    return (moment - EPOCH) // MILLISECOND


def from_ms(ms: int) -> datetime:
    """The other way round."""
    return EPOCH + ms * MILLISECOND
