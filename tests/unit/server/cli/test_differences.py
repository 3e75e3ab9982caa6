"""What is known to differ from the hosted API, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel

from server.api.schemas import FailedBody, Metrics, ResultBody, StatusBody, SubmittedBody, Video
from server.cli.hosted.differences import Row, Verdict, rows
from server.cli.hosted.recording import Answer

HOSTED = {
    "request_id", "status", "poll_url", "status_url", "response_url", "metrics", "error", "output",
    "video", "url", "content_type", "file_name", "file_size", "seed", "prompt", "inference_time",
    "queue_time", "total_time", "cost", "remaining_credits", "retry_count",
}  # fmt: skip
"""The fields of the hosted API."""
ANSWER = Answer(200, {}, 0.1, 10, {"status": "COMPLETED"}, {})


def compared(hosted: Answer, local: Answer, call: str = "result") -> list[Row]:
    """The rows that are not equal."""
    return [row for row in rows({call: hosted}, {call: local}) if row.verdict]


def with_body(**more: Any) -> Answer:
    return replace(ANSWER, body=ANSWER.body | more)


@pytest.mark.parametrize(
    "body", [SubmittedBody, StatusBody, FailedBody, ResultBody, Metrics, Video]
)
def test_every_field_that_the_hosted_api_lacks_is_a_known_addition(body: type[BaseModel]) -> None:
    for name in set(body.model_fields) - HOSTED:
        (row,) = compared(ANSWER, with_body(**{name: 1}))
        assert row.is_addition, name


def test_a_field_that_is_missing_here_is_none() -> None:
    for name in (*HOSTED - {"status"}, "progress"):
        (row,) = compared(with_body(**{name: "a"}), ANSWER)
        assert row.verdict is Verdict.DIFFERS


@pytest.mark.parametrize(
    ("hosted", "local"), [("985521", 985521), (None, 985521), (985521, 1), ([], 985521)]
)
def test_a_seed_of_another_type_or_value_differs(hosted: object, local: object) -> None:
    (row,) = compared(with_body(seed=hosted), with_body(seed=local))
    assert (row.what, row.verdict) == ("seed", Verdict.DIFFERS)


@pytest.mark.parametrize(
    ("hosted", "local"),
    [(402, 406), (200, 400), (422, 200)],
)
def test_another_status_code_differs(hosted: int, local: int) -> None:
    (row,) = compared(replace(ANSWER, status=hosted), replace(ANSWER, status=local))
    assert (row.what, row.verdict) == ("status code", Verdict.DIFFERS)


def test_only_of_a_submit_is_late_validation_known() -> None:
    (row,) = compared(ANSWER, replace(ANSWER, status=400, body={"error": "steps"}), "submit")
    assert (row.hosted, row.local, row.verdict) == ("200", "400", Verdict.KNOWN)


def test_the_text_of_an_error_may_be_another_one() -> None:
    assert compared(with_body(error="a"), with_body(error="b")) == []
    (row,) = compared(with_body(error={"message": "a"}), with_body(error="b"))[:1]
    assert row.verdict is Verdict.DIFFERS


def test_values_that_change_with_each_request_are_compared_by_their_form() -> None:
    one = with_body(
        request_id="4d0d3fcb-6f43-4a35-9be4-0b7d0c7f4d9e",
        status_url="https://a/v2/requests/4d0d3fcb-6f43-4a35-9be4-0b7d0c7f4d9e/status",
        output="https://cdn/x/1.mp4?token=1",
        metrics={"cost": 1},
    )
    other = with_body(
        request_id="1d0d3fcb-6f43-4a35-9be4-0b7d0c7f4d9e",
        status_url="http://b:1/v2/requests/1d0d3fcb-6f43-4a35-9be4-0b7d0c7f4d9e/status",
        output="http://b:1/v2/videos/2.mp4",
        metrics={"cost": 0.5},
    )
    assert compared(one, other) == []
    (row,) = compared(one, replace(other, body={**other.body, "status_url": "http://b:1/status"}))
    assert row.hosted == "string (URL, /v2/requests/{id}/status)"


@pytest.mark.parametrize("call", ["status", "early result"])
def test_which_state_a_poll_meets_before_the_end_is_no_difference(call: str) -> None:
    one, other = (replace(ANSWER, body={"status": state}) for state in ("QUEUED", "PROCESSING"))
    assert compared(one, other, call) == []
    assert compared(one, other, "submit") != []
