"""`client.webhooks` of the official SDK: URLs that receive the end of each request of a key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from segmind import SegmindClient
from segmind.exceptions import SegmindError

from models.mock.scenario import SCENARIO
from tests.support.services.hosted import hosted_sdk
from tests.support.services.receiver import ALLOWED, Receiver, receiver, trap
from tests.support.stack import Stack, eventually
from worker.store import keyspace
from worker.store.webhooks.deliveries import State, all_deliveries, signing_secrets

POND: dict[str, Any] = {"prompt": "a pond", "frames": 1, "steps": 10}
ENDS = ["INFERENCE", "PIXELFLOW"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"engine": "fake", "fake_step_seconds": "0.01", "webhook_allow": ALLOWED}
    with Stack(tmp_path_factory.mktemp("standing"), **settings) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture
def sdk(stack: Stack) -> Iterator[SegmindClient]:
    with hosted_sdk(stack.url, stack.key()) as client:
        yield client


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as it:
        yield it


def run(sdk: SegmindClient, **more: object) -> str:
    """The id of a request that has ended."""
    job = sdk.submit_async("mochi-1", **POND | more)
    eventually(lambda: job.status()["status"] in {"COMPLETED", "FAILED"})
    return str(job.request_id)


def post(stack: Stack, sdk: SegmindClient, path: str, body: object) -> httpx2.Response:
    """With escapes where httpx2 would not encode."""
    headers = {"content-type": "application/json"}
    return stack.http(sdk.api_key).post(
        f"/webhook/{path}", content=json.dumps(body), headers=headers
    )


def secret(stack: Stack, sdk: SegmindClient) -> str:
    return signing_secrets(stack.redis, stack.owner(str(sdk.api_key)))[0]


def test_it_receives_the_end_of_each_request_signed(
    stack: Stack, sdk: SegmindClient, there: Receiver
) -> None:
    added = sdk.webhooks.add(there.url, ENDS)
    assert added["status"] == "success"
    assert added["message"] == "Webhook added. It receives the end of each request."
    (row,) = sdk.webhooks.get()["webhooks"]
    created_at = row.pop("created_at")
    assert created_at
    assert row == {
        "webhook_id": added["webhook_id"],
        "webhook_url": there.url,
        "event_types": ENDS,
        "status": "active",
    }
    done, failed = run(sdk), run(sdk, **{SCENARIO: "fail:no"})
    for request_id, kind in ((done, "request.completed"), (failed, "request.failed")):
        (call,) = eventually(lambda: there.of(request_id))
        body = call.verified(secret(stack, sdk))
        assert (body["type"], body["data"]["request_id"]) == (kind, request_id)
    link = there.of(done)[0].json["data"]["output"]
    assert sdk._client.get(link).content[4:8] == b"ftyp"
    logs = eventually(lambda: _of_length(sdk.webhooks.logs(added["webhook_id"])["logs"], 2))
    assert [log.pop("timestamp") > created_at for log in logs] == [True, True]
    tried = [line for line in stack.logs().splitlines() if "webhook.tried" in line]
    assert [line for line in tried if f"{failed}:{added['webhook_id']}" in line]
    told = {"event_type": "INFERENCE", "status": "delivered", "response_code": 200, "error": None}
    assert logs == [told | {"request_id": request_id} for request_id in (failed, done)]


def _of_length(logs: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    return logs if len(logs) == length else []


def test_it_is_called_beside_the_webhook_url_of_a_request(
    sdk: SegmindClient, there: Receiver
) -> None:
    with receiver() as another:
        sdk.webhooks.add(there.url, ["GENERATION"])
        request_id = run(sdk, webhook_url=another.url)
        assert eventually(lambda: there.of(request_id) and another.of(request_id))


def test_attempts_that_fail_are_in_its_log_and_repeated(
    stack: Stack, sdk: SegmindClient, there: Receiver
) -> None:
    there.status = 503
    webhook_id = sdk.webhooks.add(there.url, ENDS)["webhook_id"]
    request_id = run(sdk)
    (log,) = eventually(lambda: sdk.webhooks.logs(webhook_id)["logs"])
    assert (log["status"], log["response_code"], log["error"]) == ("failed", 503, "HTTP 503")
    there.status = 200
    delivery_id = f"{request_id}:{webhook_id}"
    replayed = stack.run("webhooks", "replay", delivery_id)
    assert (replayed.returncode, replayed.stdout) == (0, f"Due: {delivery_id}.\n")
    logs = eventually(lambda: _of_length(sdk.webhooks.logs(webhook_id)["logs"], 2))
    assert [log["status"] for log in logs] == ["delivered", "failed"]
    assert delivery_id in stack.run("webhooks", "list", "--json").stdout


def test_it_can_be_changed_and_deleted(sdk: SegmindClient, there: Receiver) -> None:
    with receiver() as another:
        webhook_id = sdk.webhooks.add(another.url, ENDS)["webhook_id"]
        assert sdk.webhooks.update(webhook_id, there.url, ["INFERENCE"])["status"] == "success"
        first = run(sdk)
        eventually(lambda: there.of(first))
        assert sdk.webhooks.delete(webhook_id)["webhook_id"] == webhook_id
        assert sdk.webhooks.get() == {"webhooks": []}
        second = run(sdk, webhook_url=another.url)
        eventually(lambda: another.of(second))
        assert (another.of(first), there.of(second)) == ([], [])


def test_deliveries_to_a_deleted_one_are_given_up(
    stack: Stack, sdk: SegmindClient, there: Receiver
) -> None:
    there.status = 500
    webhook_id = sdk.webhooks.add(there.url, ENDS)["webhook_id"]
    delivery_id = f"{run(sdk)}:{webhook_id}"
    eventually(lambda: sdk.webhooks.logs(webhook_id)["logs"])
    sdk.webhooks.delete(webhook_id)
    stack.run("webhooks", "replay", delivery_id)

    def is_given_up() -> bool:
        found = {each.delivery_id: each for each in all_deliveries(stack.redis)}
        delivery = found[delivery_id]
        return delivery.state is State.GIVEN_UP and delivery.log[-1][1] == "the webhook was deleted"

    assert eventually(is_given_up)
    assert len(there.calls) == 1


def test_a_revoked_key_sends_no_more(stack: Stack, there: Receiver) -> None:
    key = stack.key(name="mallory")
    with hosted_sdk(stack.url, key) as sdk:
        sdk.webhooks.add(there.url, ENDS)
        request_id = sdk.submit_async("mochi-1", **POND, **{SCENARIO: "slow:2"}).request_id
        assert stack.run("keys", "revoke", "mallory").returncode == 0
        eventually(lambda: stack.record(request_id)["status"] == "FAILED")  # cancelled
        assert not [each for each in all_deliveries(stack.redis) if each.request_id == request_id]


def test_a_deleted_request_takes_its_deliveries_with_it(
    stack: Stack, sdk: SegmindClient, there: Receiver
) -> None:
    there.status = 500
    webhook_id = sdk.webhooks.add(there.url, ENDS)["webhook_id"]
    request_id = run(sdk)
    eventually(lambda: sdk.webhooks.logs(webhook_id)["logs"])
    assert stack.http(sdk.api_key).delete(f"/v1/videos/{request_id}").status_code == 200
    assert sdk.webhooks.logs(webhook_id)["logs"] == []
    assert not stack.redis.keys(f"{keyspace.WEBHOOK}{request_id}*")


def test_events_that_this_server_lacks_are_kept_and_never_sent(
    sdk: SegmindClient, there: Receiver
) -> None:
    added = sdk.webhooks.add(there.url, ["PIXELFLOW", "FINETUNE"])
    assert added["message"] == (
        "Webhook added. It receives nothing: this server sends the ends of requests only, as "
        "`INFERENCE`, `GENERATION`, `MODEL_INFERENCE`, and notices of the key's monthly cap, as "
        "`BUDGET`."
    )
    sdk.webhooks.add(f"{there.url}?ends", ["INFERENCE"])
    request_id = run(sdk)
    (call,) = eventually(lambda: there.of(request_id))
    assert call.path.endswith("?ends")
    assert sdk.webhooks.logs(added["webhook_id"])["logs"] == []


def test_another_key_sees_and_changes_nothing(
    stack: Stack, sdk: SegmindClient, there: Receiver
) -> None:
    webhook_id = sdk.webhooks.add(there.url, ENDS)["webhook_id"]
    with hosted_sdk(stack.url, stack.key()) as other:
        assert other.webhooks.get() == {"webhooks": []}
        calls: list[Callable[[], object]] = [
            lambda: other.webhooks.update(webhook_id, there.url, ENDS),
            lambda: other.webhooks.delete(webhook_id),
            lambda: other.webhooks.logs(webhook_id),
        ]
        for call in calls:
            with pytest.raises(SegmindError, match="no webhook with this") as refusal:
                call()
            assert refusal.value.status == 404
    assert len(sdk.webhooks.get()["webhooks"]) == 1


def test_no_id_of_another_key_deletes_its_webhooks_or_their_log(
    stack: Stack, sdk: SegmindClient, there: Receiver
) -> None:
    webhook_id = sdk.webhooks.add(there.url, ["INFERENCE"])["webhook_id"]
    owner = stack.owner(str(sdk.api_key))
    stack.redis.lpush(keyspace.STANDING_LOG + webhook_id, "a delivery")
    other = stack.http()
    for guess in (webhook_id, owner, f"log:{webhook_id}"):
        answer = other.get("/webhook/inactive", params={"webhook_id": guess})
        assert answer.status_code == 404
    assert stack.redis.hexists(keyspace.STANDING + owner, webhook_id)
    assert stack.redis.exists(keyspace.STANDING_LOG + webhook_id)


def test_a_url_has_one_webhook_however_often_it_is_added(
    stack: Stack, sdk: SegmindClient, there: Receiver
) -> None:
    added = sdk.webhooks.add(there.url, ["PIXELFLOW"])
    again = sdk.webhooks.add(there.url, ENDS)
    assert again["webhook_id"] == added["webhook_id"]
    assert again["message"] == "Webhook updated. It receives the end of each request."
    (row,) = sdk.webhooks.get()["webhooks"]
    assert row["event_types"] == ENDS
    request_id = run(sdk)
    assert len(eventually(lambda: there.of(request_id))) == 1
    other_id = sdk.webhooks.add(f"{there.url}?other", ENDS)["webhook_id"]
    with pytest.raises(
        SegmindError, match=f"webhook {added['webhook_id']} has this URL"
    ) as refusal:
        sdk.webhooks.update(other_id, there.url, ENDS)
    assert refusal.value.status == 409
    assert sdk.webhooks.update(other_id, f"{there.url}?other", ["PIXELFLOW"])
    with hosted_sdk(stack.url, stack.key()) as other:
        assert other.webhooks.add(there.url, ENDS)["webhook_id"] != added["webhook_id"]


def test_a_key_has_ten_at_most(sdk: SegmindClient, there: Receiver) -> None:
    for number in range(10):
        webhook_id = sdk.webhooks.add(f"{there.url}?{number}", ["PIXELFLOW"])["webhook_id"]
    with pytest.raises(SegmindError, match="has 10 webhooks, the most") as refusal:
        sdk.webhooks.add(there.url, ENDS)
    assert refusal.value.status == 403
    sdk.webhooks.add(f"{there.url}?0", ENDS)  # it is there
    sdk.webhooks.update(webhook_id, there.url, ENDS)
    sdk.webhooks.delete(webhook_id)
    sdk.webhooks.add(there.url, ENDS)


WRONG: list[tuple[object, str]] = [
    ({}, "`webhook_url` is missing"),
    ({"webhook_url": 7}, "`webhook_url` must be an http or https URL"),
    ({"webhook_url": "http://10.0.0.1/"}, "`webhook_url` must not lead to an address"),
    ({"webhook_url": "http://hooks.example/\ud800"}, "`webhook_url` must be"),
    ({"webhook_url": "http://hooks.example"}, "`event` must be an object with `types`"),
    ({"webhook_url": "http://hooks.example", "event": []}, "`event` must be"),
    *(
        ({"webhook_url": "http://hooks.example", "event": {"types": types}}, "`event` must be")
        for types in ("INFERENCE", [], ["a"], [7], ["A"] * 21, ["\ud800"], None)
    ),
    *(
        (
            {"webhook_url": "http://hooks.example", "event": {"types": ["INFERENCE", typo]}},
            f"`event`: there is no type `{typo}`; did you mean `{meant}`? This server sends "
            "`INFERENCE`, `GENERATION`, `MODEL_INFERENCE` and `BUDGET`.",
        )
        for typo, meant in (
            ("INFERENCES", "INFERENCE"),
            ("MODELINFERENCE", "MODEL_INFERENCE"),
            ("BUGDET", "BUDGET"),
        )
    ),
]


@pytest.mark.parametrize(("body", "error"), WRONG)
def test_what_is_wrong_is_named_with_its_rule(
    stack: Stack, sdk: SegmindClient, body: object, error: str
) -> None:
    for path in ("add", "update"):
        answer = post(stack, sdk, path, body)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(error)


@pytest.mark.parametrize("webhook_id", [None, 7, "", "\ud800", "a" * 10_000])
def test_an_odd_id_is_no_webhook(stack: Stack, sdk: SegmindClient, webhook_id: object) -> None:
    body = {
        "webhook_id": webhook_id,
        "webhook_url": f"http://{ALLOWED}/",
        "event": {"types": ["A"]},
    }
    assert post(stack, sdk, "update", body).status_code == 404


def test_an_address_that_leads_inside_is_not_called(stack: Stack, sdk: SegmindClient) -> None:
    """Where the guard has learned of it after the webhook was added, too."""
    with trap() as (port, seen):
        webhook_id = sdk.webhooks.add(f"http://{ALLOWED}:{port}/", ENDS)["webhook_id"]
        standing = keyspace.STANDING + stack.owner(str(sdk.api_key))
        kept = str(stack.redis.hget(standing, webhook_id))
        stack.redis.hset(standing, webhook_id, kept.replace(ALLOWED, "127.0.0.1"))
        run(sdk)
        (log,) = eventually(lambda: sdk.webhooks.logs(webhook_id)["logs"])
        assert (log["response_code"], log["error"]) == (None, "the address is not public")
        assert seen() == 0
