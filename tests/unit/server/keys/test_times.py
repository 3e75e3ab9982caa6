from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.keys.times import (
    from_ms,
    in_utc,
    parse_duration,
    parse_end,
    parse_moment,
    to_ms,
    written,
)

NOW = datetime(2027, 1, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("24h", 86_400), ("30d", 2_592_000), ("0", 0), ("0s", 0)],
)
def test_a_length_of_time_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "5", "5x", "-5s", "1.5h", "5 h", "d", "1h30m", "99999999d"])
def test_what_is_no_length_of_time_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a duration: write 90s|more than 36500 days"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-31", "2027-01-31T00:00:00Z"),
        ("2027-01-31T18:00:00Z", "2027-01-31T18:00:00Z"),
        ("2027-01-31T18:00", "2027-01-31T18:00:00Z"),
        ("2027-01-31T18:00:00+02:00", "2027-01-31T16:00:00Z"),
    ],
)
def test_a_date_is_meant_in_utc_unless_it_says_otherwise(text: str, moment: str) -> None:
    assert written(parse_moment(text)) == moment
    assert in_utc(date(2027, 1, 31)) == parse_moment("2027-01-31")


@pytest.mark.parametrize("text", ["", "2027-02-30", "31.1.2027", "tomorrow", "9999-12-31", "30d"])
def test_what_is_no_date_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is not a date: write 2027-01-31"):
        parse_moment(text)


@pytest.mark.parametrize(
    "text",
    [
        "9999-12-31T23:59:59-10:00",
        "0001-01-01T00:00:00+10:00",
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00+01:00",
        "9000-01-01",
    ],
)
def test_what_is_too_early_or_too_late_to_be_meant_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="must be from 1970 to 8999"):
        in_utc(datetime.fromisoformat(text))
    with pytest.raises(ValueError, match="is not a date: write 2027-01-31"):
        parse_moment(text)


def test_an_end_is_either_and_is_still_to_come() -> None:
    assert parse_end("36h", NOW) == NOW + timedelta(hours=36)
    assert parse_end("2027-01-31", NOW) == NOW + timedelta(hours=12)
    with pytest.raises(ValueError, match="neither a duration"):
        parse_end("soon", NOW)
    for over in ("2027-01-30", "0"):
        with pytest.raises(ValueError, match="is in the past: it is now 2027-01-30T12:00:00Z"):
            parse_end(over, NOW)


@given(st.integers(0, 2 * 10**14))
def test_the_broker_keeps_a_moment_to_the_millisecond(ms: int) -> None:
    assert to_ms(from_ms(ms)) == ms
