from __future__ import annotations

import pytest

from models.engine import Traits


@pytest.mark.parametrize(
    ("traits", "text"),
    [
        (Traits("light mock", "CPU", "none"), "light mock, CPU"),
        (Traits("Mochi 1", "a card", "reference", "80gb"), "Mochi 1, a card, reference, 80gb"),
        (
            Traits("Mochi 1", "a card", "bf16", "24gb", ("fp8", "step_cache")),
            "Mochi 1, a card, bf16, 24gb, lossy: fp8, lossy: step_cache",
        ),
    ],
)
def test_an_engine_is_named_with_all_that_changes_its_pictures(traits: Traits, text: str) -> None:
    assert str(traits) == text
