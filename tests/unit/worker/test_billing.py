from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.request.catalogue import FAST_MOCHI, MOCHI
from worker.billing import Tariff, from_millionths, to_millionths


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


def test_the_price_of_a_model_is_multiplied_by_its_factor() -> None:
    base, frame_step, gpu_second = Decimal("0.5"), Decimal("0.000001"), Decimal("0.3")
    tariff = Tariff(base, frame_step, gpu_second, 10, {FAST_MOCHI.slug: Decimal("0.25")})
    slow = tariff.price(MOCHI.parameters(prompt="a pond", frames=1, steps=10))
    fast = tariff.price(FAST_MOCHI.parameters(prompt="a pond", frames=1, steps=10))
    assert (slow.fixed, slow.gpu_second, slow.most) == (500_010, 300_000, Decimal("3.50001"))
    assert (fast.fixed, fast.gpu_second, fast.most) == (125_002, 75_000, Decimal("0.875002"))


def test_a_draft_and_its_finish_pay_for_the_steps_of_each_and_the_base_twice() -> None:
    tariff = Tariff(Decimal(1), Decimal("0.01"), Decimal("0.3"), 10)
    params = MOCHI.parameters(prompt="a pond", frames=2, steps=30)
    draft, finish, whole = tariff.price(params, 8), tariff.price(params, 22), tariff.price(params)
    assert (draft.fixed, finish.fixed, whole.fixed) == (1_160_000, 1_440_000, 1_600_000)
    assert draft.fixed + finish.fixed == whole.fixed + 1_000_000
    assert draft.gpu_second == whole.gpu_second
