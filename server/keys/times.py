"""Times and durations, as users write them and as the broker stores them.

The parsers raise ValueError, which names the forms that they accept.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta

from redis import Redis
from redis.client import Pipeline

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
LONGEST = timedelta(days=36_500)
LATEST_YEAR = 9000
"""Later years are typing errors, and leave no room for additions."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def parse_duration(text: str) -> timedelta:
    """Parse `90s`, `15m`, `24h`, `30d` or `0`."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])|0", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a duration: write 90s, 15m, 24h or 30d.")
    number, unit = found.groups(default="")
    duration = timedelta(**{UNITS[unit]: int(number)}) if unit else timedelta()
    if duration > LONGEST:
        raise ValueError(f"{text!r} is more than {LONGEST.days} days.")
    return duration


def parse_moment(text: str) -> datetime:
    """Parse `2027-01-31` (midnight UTC) or `2027-01-31T18:00:00Z`."""
    with suppress(ValueError):
        return in_utc(datetime.fromisoformat(text.strip()))
    raise ValueError(f"{text!r} is not a date: write 2027-01-31, or 2027-01-31T18:00:00Z.")


def parse_end(text: str, now: datetime) -> datetime:
    """Parse an expiry: a duration from `now`, or a date in the future."""
    try:
        end = now + parse_duration(text)
    except ValueError:
        try:
            end = parse_moment(text)
        except ValueError:
            raise ValueError(
                f"{text!r} is neither a duration, like 12h or 30d, nor a date, like "
                "2027-01-31 or 2027-01-31T18:00:00Z."
            ) from None
    if end <= now:
        raise ValueError(f"{text!r} is in the past: it is now {written(now)}.")
    return end


def in_utc(moment: date) -> datetime:
    """Convert to UTC, which is also the zone of a date or a time without one.

    Raises:
        ValueError: the year is out of range.
    """
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time())
    with suppress(OverflowError):
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        if moment >= EPOCH and moment.year < LATEST_YEAR:
            return moment
    raise ValueError(f"It must be from {EPOCH.year} to {LATEST_YEAR - 1}.")


def written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def broker_time(redis: Redis | Pipeline) -> datetime:
    """The broker's current time."""
    seconds, microseconds = redis.time()
    return from_ms(seconds * 1000 + microseconds // 1000)


def to_ms(moment: datetime) -> int:
    """A datetime to milliseconds since 1970."""
    return (moment - EPOCH) // MILLISECOND


def from_ms(ms: int) -> datetime:
    """Milliseconds since 1970 to a datetime."""
    return EPOCH + ms * MILLISECOND
