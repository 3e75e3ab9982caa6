"""What a video costs: reserved at the submit, charged for a video, free again without one."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from segmind.exceptions import SegmindError

from models.mock.scenario import SCENARIO
from tests.support.stack import PATIENCE_SECONDS, Stack, eventually
from tests.support.wire import ended
from worker.store import keyspace

POND = {"prompt": "a pond", "frames": 4, "steps": 10}
PRICE = 1.0
"""Of a pond: 0.2 and 40 times 0.02."""
PRICES = {"price_base": "0.2", "price_frame_step": "0.02"}
MANY = 50


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("credits")
    with Stack(folder, engine="fake", fake_step_seconds="0.04", **PRICES) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


def account(stack: Stack, key: str) -> dict[str, Decimal]:
    """Credits: granted, and where they are."""
    kept: dict[str, Any] = stack.redis.hgetall(keyspace.API_KEY + stack.owner(key))  # type: ignore[assignment]
    names = ("balance", "reserved", "charged", "granted")
    return {name: Decimal(kept.get(name, 0)) / 1_000_000 for name in names}


def assert_balanced(stack: Stack, key: str) -> None:
    kept = account(stack, key)
    assert kept["balance"] + kept["reserved"] + kept["charged"] == kept["granted"]


def submit(stack: Stack, key: str, **others: Any) -> str:
    answer = stack.http(key).post("/v2/mochi-1", json=POND | others)
    assert answer.is_success, answer.text
    return str(answer.json()["request_id"])


def test_a_video_costs_its_price_and_every_answer_says_so(stack: Stack) -> None:
    key = stack.key(credits="2.5")
    with_sdk = stack.sdk(key).run("mochi-1", **POND)
    assert with_sdk["metrics"] | {"cost": PRICE, "remaining_credits": 1.5} == with_sdk["metrics"]
    blocking = stack.http(key).post("/v1/mochi-1", json=POND)
    assert blocking.headers["x-cost"] == "1"
    assert blocking.headers["x-remaining-credits"] == "0.5"
    assert stack.http(key).get("/v1/get-user-credits").json() == {
        "credits": 0.5,
        "free-credits": 0.0,
    }
    assert account(stack, key) == {
        "balance": Decimal("0.5"), "reserved": 0, "charged": 2, "granted": Decimal("2.5"),
    }  # fmt: skip


def test_too_few_credits_are_406_with_balance_and_price_and_nothing_is_queued(
    stack: Stack,
) -> None:
    key = stack.key(credits="0.999999")
    for path in ("/v1/mochi-1", "/v2/mochi-1"):
        answer = stack.http(key).post(path, json=POND)
        assert answer.status_code == 406
        assert answer.json() == {
            "error": "Insufficient credits: the request costs up to 1, and the balance is "
            "0.999999. Ask your operator for more."
        }
    with pytest.raises(SegmindError, match="Insufficient credits"):
        stack.sdk(key).run("mochi-1", **POND)
    assert account(stack, key)["reserved"] == 0
    assert not stack.redis.exists(keyspace.LIVE + stack.owner(key))


def test_a_key_without_a_balance_is_charged_and_never_runs_out(stack: Stack) -> None:
    key = stack.key()
    done = ended(stack.http(key), submit(stack, key))
    assert done["metrics"]["cost"] == PRICE
    assert done["metrics"]["remaining_credits"] == 1e9
    assert stack.http(key).get("/v1/get-user-credits").json()["credits"] == 1e9


@pytest.mark.parametrize("scenario", ["fail", "out_of_memory", "bug"])
def test_what_fails_costs_nothing(stack: Stack, scenario: str) -> None:
    key = stack.key(credits="1")
    failed = ended(stack.http(key), submit(stack, key, **{SCENARIO: scenario}))
    assert failed["status"] == "FAILED"
    assert not {"cost", "remaining_credits"} & set(failed["metrics"])
    assert account(stack, key)["balance"] == 1
    assert_balanced(stack, key)


def test_what_is_cancelled_costs_nothing_waiting_or_running(stack: Stack) -> None:
    key = stack.key(credits="4")
    client = stack.http(key)
    running, waiting = (submit(stack, key, steps=75, frames=1) for _ in range(2))
    eventually(lambda: int(stack.record(running).get("step", 0)) > 0)
    for request_id in (waiting, running):
        assert client.delete(f"/v2/requests/{request_id}").status_code == 202
        assert ended(stack.http(key), request_id)["error_code"] == "cancelled"
    assert account(stack, key)["balance"] == 4
    assert_balanced(stack, key)


def test_of_fifty_submits_at_once_as_many_are_accepted_as_are_paid_for(tmp_path: Path) -> None:
    """Over one gateway, and over two; and when all have failed, all is free again."""
    with Stack(tmp_path, engine="fake", fake_step_seconds="0", **PRICES) as stack:
        gateways = [stack.start_gateway(), stack.start_gateway()]
        keys = {"one": stack.key(credits="7"), "two": stack.key(credits="7.999999")}
        for name, urls in (("one", gateways[:1]), ("two", gateways)):
            statuses = submit_at_once(urls, keys[name])
            assert statuses == {200: 7, 406: MANY - 7}
            assert account(stack, keys[name])["reserved"] == 7
            assert_balanced(stack, keys[name])
        stack.start_worker()
        for key, given in ((keys["one"], "7"), (keys["two"], "7.999999")):
            eventually(lambda key=key: account(stack, key)["reserved"] == 0)  # type: ignore[misc]
            assert account(stack, key)["balance"] == Decimal(given)


def submit_at_once(urls: list[str], key: str) -> dict[int, int]:
    """How many submits, which will fail when they are run, got which status."""
    body = POND | {SCENARIO: "fail"}

    with (
        httpx2.Client(headers={"x-api-key": key}, timeout=60) as client,
        ThreadPoolExecutor(MANY) as threads,
    ):

        def ask(number: int) -> int:
            return client.post(f"{urls[number % len(urls)]}/v2/mochi-1", json=body).status_code

        return dict(Counter(threads.map(ask, range(MANY))))


def test_a_replay_is_charged_once_and_needs_no_credits(stack: Stack) -> None:
    key = stack.key(credits="1")
    client = stack.http(key)
    ids = {
        client.post("/v2/mochi-1", json=POND, headers={"idempotency-key": "k"}).json()["request_id"]
        for _ in range(3)
    }
    assert len(ids) == 1
    ended(stack.http(key), ids.pop())
    assert account(stack, key)["charged"] == 1


def test_a_second_of_gpu_is_charged_as_measured_and_no_more_than_reserved(tmp_path: Path) -> None:
    settings = {"price_base": "0.5", "price_gpu_second": "10", "price_most_gpu_seconds": "2"}
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.01", **settings) as stack:
        stack.start_gateway()
        key = stack.key(credits="20.5")
        refused = stack.http(stack.key(credits="20.4")).post("/v2/mochi-1", json=POND)
        assert "costs up to 20.5," in refused.json()["error"]
        first = submit(stack, key, frames=1)
        assert account(stack, key)["reserved"] == Decimal("20.5")
        stack.start_worker()
        metrics = ended(stack.http(key), first)["metrics"]
        cost = Decimal("0.5") + 10 * Decimal(str(metrics["inference_time"]))
        assert Decimal(str(metrics["cost"])) == min(cost, Decimal("20.5"))
        assert account(stack, key)["charged"] == Decimal(str(metrics["cost"]))
        assert_balanced(stack, key)


def test_a_process_killed_between_reserve_and_run_leaves_nothing_reserved(tmp_path: Path) -> None:
    """The gateway right after the submit; then the worker, in what is the last attempt."""
    with Stack(tmp_path, engine="fake", lease_seconds="2", **PRICES) as stack:
        stack.start_gateway()
        key = stack.key(credits="2")
        crashes = submit(stack, key, **{SCENARIO: "signal:SIGKILL"})
        waits = submit(stack, key)
        os.kill(stack.processes[0].pid, signal.SIGKILL)
        stack.start_gateway()
        stack.redis.hset(keyspace.record(crashes), "attempt", keyspace.MOST_ATTEMPTS - 1)
        assert stack.start("worker").wait(PATIENCE_SECONDS) == -signal.SIGKILL
        stack.start_worker()
        assert ended(stack.http(key), crashes)["error_code"] == "worker_lost"
        assert ended(stack.http(key), waits)["status"] == "COMPLETED"
        expected = {"balance": 1, "reserved": 0, "charged": 1, "granted": 2}
        assert account(stack, key) == expected
