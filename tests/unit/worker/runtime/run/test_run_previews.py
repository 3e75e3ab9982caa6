"""When a run shows a preview, and when the broker drops it."""

from __future__ import annotations

import pytest

from models.moderation.stages import Moderation
from tests.support.jobs import find, pop, submit
from tests.unit.worker.support.desk import Desk, Hooked
from worker.store.worker_side import Lease


@pytest.mark.parametrize("how", ["ended", "lost"])
def test_a_preview_goes_with_the_run(desk: Desk, how: str) -> None:
    desk.preview_steps = 2
    kept: list[list[object]] = []

    def look(step: int) -> None:
        desk.heartbeat._beat()
        kept.append([desk.redis.get(key) for key in desk.redis.keys("mochi:preview:*")])
        if step == 5 and how == "lost":
            desk.take_away()
            desk.heartbeat._beat()

    job = desk.run(Hooked(look))
    assert job.preview_step is None
    assert desk.redis.keys("mochi:preview:*") == []
    # It is looked at before a step, so the picture of step 2 is there before the third.
    assert kept[:2] == [[], []]
    assert all(kept[2:5])
    assert kept[2] == kept[3] != kept[4]


def test_no_preview_is_shown_where_frames_are_moderated(desk: Desk) -> None:
    class Judge:
        def blocks(self, frame: bytes, width: int, height: int) -> str | None:
            return None if len(frame) == 3 * width * height else "odd"

    desk.preview_steps = 1
    desk.moderation = Moderation(frame_judge=Judge())
    seen: list[object] = []
    desk.run(
        Hooked(
            lambda _: seen.append(desk.heartbeat.current_run and desk.heartbeat.current_run.preview)
        )
    )
    assert seen == [None] * 10


def test_a_run_that_is_not_ours_any_more_shows_nothing(desk: Desk) -> None:
    request_id = submit(desk.url)
    pop(desk.redis)
    assert desk.store.start(Lease(request_id, "a-run"), "ann")
    desk.store.preview(Lease(request_id, "another"), 5, "data:")
    assert find(desk.url, request_id).preview_step is None
    assert desk.redis.keys("mochi:preview:*") == []
