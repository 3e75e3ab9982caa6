from __future__ import annotations

import pytest

from server.settings import ServerSettings
from server.supervisor.pool import devices


@pytest.mark.parametrize(
    ("workers", "device", "expected"),
    [
        (1, "cuda", ["cuda"]),
        (3, "cuda", ["cuda:0", "cuda:1", "cuda:2"]),
        (1, "cuda:1", ["cuda:1"]),
        (2, "cuda:1", ["cuda:1", "cuda:2"]),
    ],
)
def test_each_worker_has_a_card_of_its_own_from_the_named_one_on(
    workers: int, device: str, expected: list[str]
) -> None:
    assert devices(ServerSettings(workers=workers, device=device)) == expected


def test_groups_of_cards_stand_beside_each_other() -> None:
    settings = ServerSettings(workers=2, device="cuda:1", gpus_per_video=4)
    assert devices(settings) == ["cuda:1", "cuda:5"]
