"""What `mochi-server generate` says of where its request is."""

from __future__ import annotations

from typing import Any

import pytest

from server.cli.client import where

RUNS = {"status": "PROCESSING", "step": 12, "total_steps": 30}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"status": "QUEUED", "stage": "queued", "queue_position": 3}, "queued, place 3"),
        (
            {"status": "QUEUED", "stage": "queued", "queue_position": 3, "eta_seconds": 71.6},
            "queued, place 3, about 72 s left",
        ),
        (RUNS | {"stage": "encoding_prompt"}, "encoding prompt"),
        (
            RUNS | {"stage": "denoising", "eta_seconds": 8.2},
            "denoising, step 12 of 30, about 8 s left",
        ),
        ({"status": "COMPLETED"}, "completed"),
    ],
)
def test_the_place_the_step_and_the_time_left_are_told_where_they_are_known(
    body: dict[str, Any], words: str
) -> None:
    assert where(body) == words
