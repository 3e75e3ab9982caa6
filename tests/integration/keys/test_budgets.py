"""A monthly cap as its key meets it: refusals, what is left, and notices by webhook."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from segmind.exceptions import SegmindError
from typer.testing import CliRunner, Result

from server.cli import main as cli
from server.keys.lookup import Scope
from server.keys.store import change_key, one_key
from server.keys.times import broker_time
from tests.support.services.hosted import hosted_sdk
from tests.support.services.receiver import ALLOWED, Call, Receiver, receiver
from tests.support.stack import Stack, eventually
from worker.store.webhooks.deliveries import signing_secrets

POND: dict[str, Any] = {"prompt": "a pond", "frames": 1, "steps": 10}
"""Costs 1 credit."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"fake_step_seconds": "0", "webhook_allow": ALLOWED, "price_base": "1"}
    with Stack(tmp_path_factory.mktemp("budgets"), engine="fake", **settings) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as it:
        yield it


def credits_left(stack: Stack, key: str) -> list[float]:
    """By the routes that tell them."""
    client = stack.http(key)
    account = client.get("/api/auth/authenticate").json()
    return [client.get("/v1/get-user-credits").json()["credits"], account["credits"]["balance"]]


def spend(stack: Stack, key: str) -> dict[str, Any]:
    result: dict[str, Any] = stack.sdk(key).run("mochi-1", **POND)
    return result


def test_a_key_spends_its_cap_and_is_then_told_when_the_month_ends(stack: Stack) -> None:
    key = stack.key(monthly_cap="2.5", credits="100")
    assert credits_left(stack, key) == [2.5, 2.5]
    metrics = spend(stack, key)["metrics"]
    assert (metrics["cost"], metrics["remaining_credits"]) == (1, 1.5)
    blocking = stack.http(key).post("/v1/mochi-1", json=POND)
    assert blocking.headers["x-remaining-credits"] == "0.5"
    assert credits_left(stack, key) == [0.5, 0.5]
    today = broker_time(stack.redis)
    ends = (today.replace(day=1) + timedelta(31)).replace(day=1)
    expected = (
        "Insufficient credits this month: the request costs up to 1, and the `monthly_cap` of this "
        f"API key is 2.5, of which 2 are spent. The month ends at {ends:%Y-%m-%d}T00:00:00Z; wait "
        "for it, or ask your operator for a higher cap."
    )
    for path in ("/v1/mochi-1", "/v2/mochi-1"):
        answer = stack.http(key).post(path, json=POND)
        assert (answer.status_code, answer.json()) == (406, {"error": expected})
    dry = stack.http(key).post("/v2/mochi-1?dry_run=true", json=POND).json()
    assert dry["refusal"] == {"status": 406, "error": expected}
    with pytest.raises(SegmindError, match="Insufficient credits this month"):
        spend(stack, key)
    scraped = stack.http(stack.key(scopes=[Scope.ADMIN])).get("/metrics").text
    assert 'mochi_submits_total{outcome="over_monthly_cap"} 3.0' in scraped


def test_the_smaller_of_balance_and_cap_is_left(stack: Stack) -> None:
    key = stack.key(monthly_cap="50", credits="3")
    spend(stack, key)
    assert credits_left(stack, key) == [2, 2]
    without = stack.key(monthly_cap="50")
    spend(stack, without)
    assert credits_left(stack, without) == [49, 49]
    owner = stack.owner(without)
    change_key(stack.redis, owner, lambda old: old.replace(monthly_cap=Decimal("0.5")))
    assert credits_left(stack, without) == [0, 0]
    change_key(stack.redis, owner, lambda old: old.replace(monthly_cap=None))
    assert credits_left(stack, without) == [1e9, 1e9]


def test_notices_come_signed_and_once_to_those_who_asked(stack: Stack, there: Receiver) -> None:
    key = stack.key(monthly_cap="3")
    owner = stack.owner(key)
    with hosted_sdk(stack.url, key) as sdk, receiver() as other:
        asked = sdk.webhooks.add(there.url, ["BUDGET"])
        assert asked["message"] == "Webhook added. It receives notices of the key's monthly cap."
        both = sdk.webhooks.add(f"{there.url}?both", ["INFERENCE", "BUDGET"])
        assert both["message"].endswith("each request, and notices of the key's monthly cap.")
        ends = sdk.webhooks.add(other.url, ["INFERENCE"])
        requests = [spend(stack, key)["request_id"] for _ in range(3)]
        month = f"{broker_time(stack.redis):%Y-%m}"
        ids = [f"budget-{percent}-{month}-{owner}" for percent in (80, 100)]
        warned, reached = (eventually(lambda name=name: both_of(there, name)) for name in ids)  # type: ignore[misc]
        secret = signing_secrets(stack.redis, owner)[0]
        body = warned[0].verified(secret)
        assert body["type"] == "budget.warning"
        assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None
        end = datetime.fromisoformat(body["data"].pop("month_ends_at"))
        assert (end.day, end - broker_time(stack.redis) < timedelta(31)) == (1, True)
        assert body["data"] == {
            "key_id": owner, "month": month, "percent": 80, "monthly_cap": 3.0, "charged": 3.0,
        }  # fmt: skip
        assert {call.verified(secret)["type"] for call in reached} == {"budget.reached"}
        eventually(lambda: all(other.of(name) for name in requests))
        assert {call.headers["webhook-id"] for call in other.calls} == set(requests)
        logs = eventually(lambda: _of_length(sdk.webhooks.logs(asked["webhook_id"])["logs"], 2))
        told = [(log["event_type"], log["status"], log["request_id"]) for log in logs]
        assert sorted(told) == sorted(("BUDGET", "delivered", name) for name in ids)
        kinds = {log["event_type"] for log in sdk.webhooks.logs(ends["webhook_id"])["logs"]}
        assert kinds == {"INFERENCE"}
    shown = json.loads(run(stack, "webhooks", "list", "--json").stdout)
    (line,) = (each for each in shown if each["delivery_id"] == f"{ids[0]}:{asked['webhook_id']}")
    assert (line["event"], line["state"]) == ("budget.warning", "delivered")
    assert [each for each in shown if each["request_id"] == requests[0] and "event" in each] == []
    shared = run(stack, "webhooks", "replay", ids[0])
    assert shared.exit_code == 1
    said = " ".join(shared.stderr.split())
    assert "Its deliveries to standing webhooks have ids of their own:" in said
    assert {f"{ids[0]}:{each['webhook_id']}" in said for each in (asked, both)} == {True}
    assert run(stack, "webhooks", "replay", line["delivery_id"]).exit_code == 0
    assert len(eventually(lambda: _of_length(there.of(ids[0]), 3))) == 3


def both_of(there: Receiver, event_id: str) -> list[Call]:
    """The calls of the two webhooks that lead there."""
    return _of_length(there.of(event_id), 2)


def _of_length(found: list[Any], length: int) -> list[Any]:
    return found if len(found) == length else []


def test_a_notice_that_is_refused_is_tried_again(stack: Stack, there: Receiver) -> None:
    there.status = 503
    key = stack.key(monthly_cap="1.25")  # one request brings both notices
    with hosted_sdk(stack.url, key) as sdk:
        webhook_id = sdk.webhooks.add(there.url, ["BUDGET"])["webhook_id"]
        spend(stack, key)
        logs = eventually(lambda: _of_length(sdk.webhooks.logs(webhook_id)["logs"], 2))
        assert {(log["status"], log["error"]) for log in logs} == {("failed", "HTTP 503")}
        there.status = 204
        run(stack, "webhooks", "replay", f"{logs[0]['request_id']}:{webhook_id}")
        logs = eventually(lambda: _of_length(sdk.webhooks.logs(webhook_id)["logs"], 3))
        assert [each["status"] for each in logs] == ["delivered", "failed", "failed"]


def run(stack: Stack, *words: str) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(cli.app, [*words], env=stack.environ)


def test_the_commands_set_show_and_remove_a_cap(stack: Stack) -> None:
    assert run(stack, "keys", "create", "team-m", "--monthly-cap", "40.5").exit_code == 0
    assert one_key(stack.redis, "team-m")[0].monthly_cap == Decimal("40.5")
    listed = next(it for it in run(stack, "keys", "list").stdout.splitlines() if "team-m" in it)
    assert "40.5 credits a month" in listed
    changed = run(stack, "keys", "set", "team-m", "--monthly-cap", "50").stdout
    assert changed == "monthly_cap: 40.5 → 50\n"
    assert "monthly_cap: 50\n" in run(stack, "keys", "show", "team-m").stdout
    assert "monthly_cap = 50\n" in run(stack, "keys", "export").stdout
    removed = run(stack, "keys", "set", "team-m", "--monthly-cap", "0").stdout
    assert removed == "monthly_cap: 50 → none\n"
    assert one_key(stack.redis, "team-m")[0].monthly_cap is None
    for wrong in ("-1", "many", "0.0000001"):
        refused = run(stack, "keys", "set", "team-m", "--monthly-cap", wrong)
        assert (refused.exit_code, "--monthly-cap" in refused.output) == (2, True)
