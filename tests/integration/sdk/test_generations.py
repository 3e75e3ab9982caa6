"""`client.generations` of the official SDK: what a key has asked for, long after its hour."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from segmind import SegmindClient
from segmind.exceptions import SegmindError

from models.mock.scenario import SCENARIO
from tests.support.services.hosted import hosted_sdk
from tests.support.stack import Stack, eventually
from worker.store import keyspace

POND = {"prompt": "a pond at dawn", "frames": 1, "steps": 10, "seed": 7}
KEPT = {"guidance_scale": 4.5, "fps": 16.0, "frames": 1, "steps": 10, "seed": 7}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway that keeps no prompts, and a worker."""
    folder = tmp_path_factory.mktemp("history")
    with Stack(folder, engine="fake", fake_step_seconds="0.01", price_base="0.5") as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture
def key(stack: Stack) -> str:
    return stack.key()


@pytest.fixture
def sdk(stack: Stack, key: str) -> Iterator[SegmindClient]:
    with hosted_sdk(stack.url, key) as client:
        yield client


def run(sdk: SegmindClient, **more: object) -> str:
    """The id of a request that has ended."""
    job = sdk.submit_async("mochi-1", **POND | more)
    eventually(lambda: job.status()["status"] in {"COMPLETED", "FAILED"})
    return str(job.request_id)


def expire(stack: Stack, *request_ids: str) -> None:
    """As if the hour had passed."""
    for request_id in request_ids:
        stack.redis.delete(keyspace.record(request_id))


def test_history_has_what_ended_what_failed_and_what_waits(
    stack: Stack, sdk: SegmindClient
) -> None:
    done = run(sdk)
    failed = run(sdk, **{SCENARIO: "fail:the lens cap was on"})
    waits = sdk.submit_async("mochi-1", **POND, **{SCENARIO: "slow:60"}).request_id
    page = sdk.generations.history()
    rows = page.pop("generations")
    assert page == {"page": 1, "per_page": 20, "total": 3, "total_pages": 1}
    assert [row["request_id"] for row in rows] == [waits, failed, done]
    assert [row["model_status"] for row in rows] == ["PENDING", "FAILED", "COMPLETED"]
    assert [row["error"] for row in rows] == [None, "the lens cap was on", None]
    assert [row["credits_deduction"] for row in rows] == [0, 0, 0.5]
    assert rows[2]["model_name"] == "mochi-1"
    assert rows[2]["latency_ms"] > 0
    assert rows[2]["request_body"] == {**KEPT, "prompt": POND["prompt"], "negative_prompt": ""}
    assert datetime.fromisoformat(rows[2]["model_created"]).tzinfo is not None
    assert sdk._client.get(rows[2]["generation_url"]).content[4:8] == b"ftyp"
    stack.http(sdk.api_key).delete(f"/v2/requests/{waits}")


def test_after_the_hour_a_row_has_no_video_and_no_prompt(stack: Stack, sdk: SegmindClient) -> None:
    done, failed = run(sdk), run(sdk, **{SCENARIO: "out_of_memory"})
    before = [sdk.generations.get(request_id) for request_id in (failed, done)]
    expire(stack, done, failed)
    rows = sdk.generations.history()["generations"]
    assert rows == [sdk.generations.get(request_id) for request_id in (failed, done)]
    gone = {"generation_url": None, "request_body": KEPT}
    assert rows == [row | gone for row in before]
    assert before[1]["generation_url"]


def test_a_page_a_state_and_an_order_can_be_asked_for(stack: Stack, sdk: SegmindClient) -> None:
    first, second = run(sdk), run(sdk)
    failed = run(sdk, **{SCENARIO: "fail:no"})
    expire(stack, first)

    def ids(**query: object) -> list[str]:
        page = sdk.generations.history(**query)
        return [row["request_id"] for row in page["generations"]]

    assert ids(per_page=2) == [failed, second]
    assert ids(per_page=2, page=2) == [first]
    assert ids(page=3) == []
    assert ids(status="FAILED") == [failed]
    assert ids(status="COMPLETED", sort_order="asc") == [first, second]
    assert ids(sort_by="credits_deduction") == [second, first, failed]
    assert ids(model_name="ochi") == [failed, second, first]
    assert ids(model_name="flux") == []
    assert ids(user_id=stack.owner(str(sdk.api_key))) == [failed, second, first]
    assert sdk.generations.history(per_page=2)["total_pages"] == 2


def test_days_are_those_of_the_submit(stack: Stack, sdk: SegmindClient, key: str) -> None:
    today = datetime.now(UTC).date()
    done = run(sdk)
    past = keyspace.PAST + stack.owner(key)
    rows: Any = stack.redis.xrange(past)
    ((_, row),) = rows
    expire(stack, done)
    stack.redis.delete(past)
    noon = datetime(today.year, today.month, today.day, 12, tzinfo=UTC) - timedelta(days=10)
    at = int(noon.timestamp() * 1000)
    stack.redis.xadd(past, row | {"created_at": at}, id=f"{at + 1000}-0")
    stack.redis.zadd(keyspace.PAST_TIMES + stack.owner(key), {done: at + 1000})

    def total(**query: str) -> int:
        return int(sdk.generations.history(**query)["total"])

    assert total() == 0  # a week
    assert total(from_date=str(noon.date())) == 1
    assert total(from_date=str(noon.date()), to_date=str(noon.date())) == 1
    assert total(from_date=str(noon.date() + timedelta(days=1))) == 0
    assert total(to_date=str(noon.date() - timedelta(days=1))) == 0
    assert sdk.generations.get(done)["request_id"] == done
    assert sdk.generations.list()["total"] == 1
    assert sdk.generations.list(start_date=str(today))["total"] == 0
    assert sdk.generations.list(end_date=str(today - timedelta(days=5)))["total"] == 1


def test_list_and_recent_have_videos_only(stack: Stack, sdk: SegmindClient) -> None:
    run(sdk, **{SCENARIO: "fail:no"})
    done = run(sdk)
    listed = sdk.generations.list(model_name="mochi-1")
    assert listed["total"] == 1
    (row,) = listed["generations"]
    assert sdk.generations.recent("mochi-1") == {"generations": [row]}
    assert (row["request_id"], row["status"]) == (done, "COMPLETED")
    assert (row["prompt"], row["credits_deduction"]) == (POND["prompt"], 0.5)
    expire(stack, done)
    (row,) = sdk.generations.recent("mochi-1")["generations"]
    assert (row["prompt"], row["generation_url"]) == (None, None)
    assert row["parameters"] == KEPT
    assert sdk.generations.recent("flux") == {"generations": []}


def test_another_keys_requests_do_not_exist(stack: Stack, sdk: SegmindClient) -> None:
    done = run(sdk)
    with hosted_sdk(stack.url, stack.key()) as other:
        for is_kept in (True, False):
            if not is_kept:
                expire(stack, done)
            assert other.generations.history()["total"] == 0
            with pytest.raises(SegmindError) as failure:
                other.generations.get(done)
            assert failure.value.status == 404
            assert failure.value.detail == f"Request {done} not found"


WRONG: dict[str, tuple[dict[str, str], int, str]] = {
    "page": ({"page": "0"}, 400, "`page` must be a whole number from 1 to 99999."),
    "per_page": ({"per_page": "101"}, 400, "`per_page` must be a whole number from 1 to 100."),
    "status": ({"status": "DONE"}, 400, "`status` must be `COMPLETED` or `FAILED` or `PENDING`."),
    "day": ({"from_date": "20260101"}, 400, "`from_date` must be a day, like 2026-01-31."),
    "no day": ({"to_date": "2026-02-30"}, 400, "`to_date` must be a day, like 2026-01-31."),
    "long": (
        {"from_date": "2026-01-01", "to_date": "2026-02-02"},
        400,
        "`to_date` must be 0 to 31 days after `from_date`. Without it, today is taken.",
    ),
    "order": ({"from_date": "2026-01-02", "to_date": "2026-01-01"}, 400, "`to_date` must be 0 to"),
    "sort": ({"sort_by": "seed"}, 400, "`sort_by` must be `model_created` or `model_name` or"),
    "user": ({"user_id": "someone"}, 403, "`user_id` must be the id of your own key"),
    "address": ({"user_email": "a@b.example"}, 403, "`user_email` must be left out"),
}


@pytest.mark.parametrize(("query", "status", "error"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_parameter_is_named_with_its_rule(
    stack: Stack, key: str, query: dict[str, str], status: int, error: str
) -> None:
    answer = stack.http(key).get("/inference-request/request-history", params=query)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(error)


@pytest.mark.parametrize("day", ["1000-01-01", "2999-12-31"])
def test_days_far_away_have_no_requests(stack: Stack, key: str, day: str) -> None:
    http = stack.http(key)
    for query in ({"to_date": day}, {"start_date": day, "end_date": day}):
        for path in ("request-history", "generations"):
            answer = http.get(f"/inference-request/{path}", params=query)
            assert (answer.status_code, answer.json()["total"]) == (200, 0)


def test_a_deleted_request_leaves_the_history(stack: Stack, sdk: SegmindClient, key: str) -> None:
    done, running = run(sdk), sdk.submit_async("mochi-1", **POND, **{SCENARIO: "slow:60"})
    http = stack.http(key)
    for request_id in (done, running.request_id):
        assert http.delete(f"/v1/videos/{request_id}").status_code == 200
        eventually(lambda: not stack.record(request_id))
    assert sdk.generations.history()["total"] == 0


def test_prompts_are_kept_on_demand(tmp_path: Path) -> None:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0", history_prompts="true") as stack:
        stack.start_gateway()
        stack.start_worker()
        with hosted_sdk(stack.url, stack.key()) as sdk:
            done = run(sdk)
            expire(stack, done)
            kept = KEPT | {"prompt": POND["prompt"], "negative_prompt": ""}
            assert sdk.generations.get(done)["request_body"] == kept


def test_without_a_history_only_the_hour_is_listed(tmp_path: Path) -> None:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0", history_days="0") as stack:
        stack.start_gateway()
        stack.start_worker()
        with hosted_sdk(stack.url, stack.key()) as sdk:
            done = run(sdk)
            assert sdk.generations.history()["total"] == 1
            expire(stack, done)
            assert sdk.generations.history()["total"] == 0
            with pytest.raises(SegmindError, match="not found"):
                sdk.generations.get(done)
        assert not stack.redis.keys(f"{keyspace.PAST}*")
