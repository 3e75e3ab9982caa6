from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.billing import from_millionths, to_millionths


@given(st.integers(-(9 * 10**15), 9 * 10**15))
def test_an_amount_is_the_same_there_and_back(millionths: int) -> None:
    assert to_millionths(from_millionths(millionths)) == millionths


@pytest.mark.parametrize(
    ("millionths", "text"), [(7_000_000, "7"), (10**8, "100"), (1, "0.000001")]
)
def test_an_amount_has_no_needless_zeros(millionths: int, text: str) -> None:
    assert f"{from_millionths(millionths):f}" == text


@pytest.mark.parametrize("amount", ["0.0000001", "1.1234567", "NaN", "Infinity"])
def test_what_is_no_number_of_millionths_is_refused(amount: str) -> None:
    with pytest.raises(ValueError, match=amount):
        to_millionths(Decimal(amount))
