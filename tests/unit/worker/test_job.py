from __future__ import annotations

from typing import Any

import pytest

from models.errors import EngineError
from models.request.params import RequestParams
from tests.support.jobs import params
from worker.job import FAILURES, TRANSITIONS, Job, Stage, Status


def job(**fields: Any) -> Job:
    record = {
        "owner": "a-key",
        "status": "QUEUED",
        "params": params(steps=30).model_dump_json(),
        "attempt": "0",
        "created_at": "1000",
    } | {name: str(value) for name, value in fields.items()}
    return Job.from_record("an-id", record)


def test_a_request_waits_then_runs_then_ends_and_may_wait_again() -> None:
    assert {
        Status.QUEUED: {Status.PROCESSING, Status.COMPLETED, Status.FAILED},
        Status.PROCESSING: {Status.COMPLETED, Status.FAILED, Status.QUEUED},
        Status.COMPLETED: set(),
        Status.FAILED: set(),
    } == TRANSITIONS


def test_what_can_never_change_is_final() -> None:
    assert {status for status in Status if status.is_final} == {Status.COMPLETED, Status.FAILED}


def test_a_record_is_read_as_the_store_keeps_it() -> None:
    ended = job(
        status="COMPLETED", attempt=2, started_at=3500, ended_at=9000, step=30, stage="publishing",
        file_name="a.mp4", file_size=17, precision="bf16", warnings='["cut"]', run="r", worker="w",
    )  # fmt: skip
    assert ended == Job(
        request_id="an-id",
        owner="a-key",
        status=Status.COMPLETED,
        params_json=params(steps=30).model_dump_json(),
        attempt=2,
        created_at=1000,
        started_at=3500,
        ended_at=9000,
        step=30,
        stage=Stage.PUBLISHING,
        file_name="a.mp4",
        file_size=17,
        precision="bf16",
        warnings_json='["cut"]',
    )
    assert ended.params == params(steps=30)
    assert ended.warnings == ["cut"]


def test_before_the_end_there_is_nothing_to_say_of_a_video() -> None:
    running = job(status="PROCESSING", started_at=3500)
    assert (running.file_name, running.precision, running.warnings) == ("", "", [])


@pytest.mark.parametrize(
    ("asked", "made", "ignored"),
    [
        ({}, {"file_name": "a.mp4"}, ""),
        ({"format": "gif"}, {"file_name": "a.gif"}, ""),
        ({"format": "gif"}, {"file_name": "a.mp4"}, "`format`"),
        ({"poster": True}, {"file_name": "a.mp4", "poster_size": 5}, ""),
        ({"poster": True, "last_frame": True}, {"poster_size": 5}, "`last_frame`"),
        ({"format": "webm", "poster": True}, {"file_name": "a.mp4"}, "`format` and `poster`"),
    ],
)
def test_a_client_is_told_what_a_worker_of_an_earlier_release_ignored(
    asked: dict[str, Any], made: dict[str, Any], ignored: str
) -> None:
    text = RequestParams(prompt="a pond", **asked).model_dump_json()
    earlier = f"The worker that made the video is of an earlier release: it ignored {ignored}."
    assert job(status="COMPLETED", params=text, **made).warnings == [earlier] * bool(ignored)
    assert job(status="PROCESSING", params=text).warnings == []


def test_times_are_between_submit_last_start_and_end() -> None:
    ended = job(status="COMPLETED", started_at=3500, ended_at=9000)
    assert (ended.queue_seconds, ended.inference_seconds, ended.total_seconds) == (2.5, 5.5, 8.0)


def test_times_that_are_not_known_yet_are_none() -> None:
    waiting, running = job(), job(status="PROCESSING", started_at=3500)
    assert (waiting.queue_seconds, waiting.inference_seconds, waiting.total_seconds) == (None,) * 3
    assert (running.queue_seconds, running.inference_seconds) == (2.5, None)


def test_a_request_that_failed_before_any_start_has_a_total_time_only() -> None:
    lost = job(status="FAILED", ended_at=9000, error="gone", error_code="worker_lost")
    assert (lost.queue_seconds, lost.inference_seconds, lost.total_seconds) == (None, None, 8.0)


def test_a_clock_that_was_set_back_makes_no_time_negative() -> None:
    ended = job(created_at=3_601_000, started_at=3_602_000, ended_at=9_000)
    assert (ended.queue_seconds, ended.inference_seconds, ended.total_seconds) == (1.0, 0, 0)


@pytest.mark.parametrize(("attempt", "retries"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_retries_are_the_runs_after_the_first(attempt: int, retries: int) -> None:
    assert job(attempt=attempt).retries == retries


@pytest.mark.parametrize(
    ("status", "record", "progress"),
    [
        ("QUEUED", {}, 0),
        ("PROCESSING", {}, 0),
        ("PROCESSING", {"progress": 99}, 99),
        ("FAILED", {"progress": 50}, 50),
        ("COMPLETED", {"progress": 97}, 100),
    ],
)
def test_progress_is_that_of_the_run_and_100_only_when_completed(
    status: str, record: dict[str, int], progress: int
) -> None:
    assert job(status=status, **record).progress == progress


@pytest.mark.parametrize(
    ("fields", "stage"),
    [
        ({}, Stage.QUEUED),
        ({"stage": "decoding"}, Stage.QUEUED),  # of a run before
        ({"status": "PROCESSING"}, Stage.ENCODING_PROMPT),  # before the first beat
        ({"status": "PROCESSING", "stage": "decoding"}, Stage.DECODING),
    ],
)
def test_the_stage_is_that_of_the_present_run(fields: dict[str, str], stage: Stage) -> None:
    assert job(**fields).stage is stage


def test_an_unknown_status_is_no_job() -> None:
    with pytest.raises(ValueError, match="STARTED"):
        job(status="STARTED")


def test_every_code_of_a_failure_is_known() -> None:
    """Or what it counts up would not be found again."""
    kinds = [EngineError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.code for kind in kinds} <= set(FAILURES)
    assert len(kinds) > 3
