"""What is in a body, and what is not there at all: clients of the hosted API know no `null`s."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from models.engine import Traits
from server.api.links import Links
from server.api.schemas import EngineBody, failed_body, result_body, status_body
from tests.support.jobs import params
from worker.job import Job, Status

LINKS = Links("http://here", "an-id")


def job(status: Status, **fields: Any) -> Job:
    return Job("an-id", "a-key", status, params().model_dump_json(), 1, 1000, 2000, 3000, **fields)


def shown(body: BaseModel) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(body.model_dump_json())
    return decoded


@pytest.mark.parametrize("status", [Status.QUEUED, Status.PROCESSING])
def test_a_status_before_the_end_says_nothing_of_warnings(status: Status) -> None:
    assert "warnings" not in shown(status_body(job(status), LINKS))


@pytest.mark.parametrize(("kept", "warnings"), [("[]", []), ('["Cut."]', ["Cut."])])
def test_status_and_result_after_the_end_have_the_warnings_or_an_empty_list(
    kept: str, warnings: list[str]
) -> None:
    done = job(Status.COMPLETED, warnings_json=kept)
    assert shown(status_body(done, LINKS))["warnings"] == warnings
    assert shown(result_body(done, LINKS, "http://here/v"))["warnings"] == warnings


def test_after_the_end_every_step_is_done() -> None:
    """The last one was not told to the broker by itself."""
    body = shown(status_body(job(Status.COMPLETED, step=9), LINKS))
    assert body["step"] == body["total_steps"]


def test_a_failure_has_neither_warnings_nor_precision() -> None:
    failed = shown(failed_body(job(Status.FAILED, error="no", error_code="internal")))
    assert not {"warnings", "precision"} & set(failed)


@pytest.mark.parametrize(
    ("kept", "part"), [("bf16", {"precision": "bf16"}), ("none", {}), ("", {})]
)
def test_a_result_has_the_precision_of_its_model_if_there_was_one(
    kept: str, part: dict[str, str]
) -> None:
    result = shown(result_body(job(Status.COMPLETED, precision=kept), LINKS, "http://here/v"))
    assert {name: result[name] for name in result if name == "precision"} == part


def test_an_engine_is_shown_with_every_trait() -> None:
    traits = Traits("Mochi 1", "a card", "bf16", "24gb", ("fp8",))
    assert shown(EngineBody.model_validate(traits)) == {
        "model": "Mochi 1",
        "device": "a card",
        "precision": "bf16",
        "profile": "24gb",
        "lossy": ["fp8"],
        "is_mock": False,
        "gpus": 1,
    }


def test_a_draft_shows_its_steps_and_where_it_is_finished() -> None:
    draft = job(Status.COMPLETED, draft_steps=4)
    assert shown(result_body(draft, LINKS, "http://here/v"))["draft"] == {
        "steps": 4,
        "total_steps": draft.params.steps,
        "finish_url": LINKS.finish,
    }
    assert "draft" not in shown(result_body(job(Status.COMPLETED), LINKS, "http://here/v"))
    body = shown(status_body(draft, LINKS))
    assert (body["step"], body["total_steps"]) == (4, 4)
