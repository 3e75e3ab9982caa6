"""Where a `webhook_url` may stand, and which URLs are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.webhooks.url import MOST_LENGTH
from tests.support.services.customer import POND, Customer
from tests.support.services.receiver import Receiver
from tests.support.stack import Stack
from tests.support.wire import refusal


def test_the_url_may_come_in_the_query_and_on_the_blocking_call(customer: Customer) -> None:
    query = {"webhook_url": f"{customer.there.url}?token=hunter2"}
    answer = customer.http.post("/v1/mochi-1", params=query, json=POND)
    assert answer.headers["content-type"] == "video/mp4"
    assert customer.told(answer.headers["x-request-id"]).path == "/hook?token=hunter2"
    assert "hunter2" not in customer.stack.logs()


def test_the_url_is_a_part_of_what_an_idempotency_key_is_for(customer: Customer) -> None:
    there = {"webhook_url": customer.there.url}
    elsewhere = {"webhook_url": customer.there.url + "/else"}

    def post(name: str, body: dict[str, str], query: dict[str, str]) -> Any:
        return customer.http.post(
            "/v2/mochi-1", json=POND | body, params=query, headers={"idempotency-key": name}
        )

    first = post("one", there, {})
    assert post("one", {}, there).json() == first.json()  # wherever it comes
    assert post("one", there, {}).headers["idempotency-replayed"] == "true"
    for body, query in ((elsewhere, {}), ({}, elsewhere), ({}, {})):
        assert refusal(post("one", body, query), 409)
    customer.told(first.json()["request_id"])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (" ", "another scheme"),
        ("hooks.example", "another scheme"),
        ("//hooks.example/x", "another scheme"),
        ("ftp://hooks.example/", "another scheme"),
        ("file:///etc/passwd", "another scheme"),
        ("https:///x", "no host"),
        ("https://", "no host"),
        ("https://a b/", "no host"),
        ("https://%6cocalhost/", "no host"),
        ("https://hooks.example:0/", "no host"),
        ("https://hooks.example:99999/", "no host"),
        ("https://hooks.example\n/", "no URL"),
        ("https://\ud800/", "no URL"),
        ("https://me:secret@hooks.example/", "user or password"),
        ("https://hooks.example\\@inside/", "user or password"),
        ("https://hooks.example/#x", "`#`"),
        ("https://hooks.example/" + "x" * MOST_LENGTH, "2,070 characters"),
        (7, "no string"),
        (["https://hooks.example/"], "no string"),
        ("http://127.0.0.1/", "start the server with MOCHI_WEBHOOK_ALLOW=127.0.0.1"),
        ("http://localhost:9/", "start the server with MOCHI_WEBHOOK_ALLOW=localhost"),
        ("http://2130706433/", "start the server with MOCHI_WEBHOOK_ALLOW=127.0.0.1"),
        ("http://[::1]/", "start the server with MOCHI_WEBHOOK_ALLOW=::1"),
        ("http://10.0.0.1/", "private, local or special"),
        ("http://[::ffff:127.0.0.1]/", "private, local or special"),
        ("http://169.254.169.254/latest/meta-data/", "private, local or special"),
    ],
)
def test_a_bad_url_is_400_with_field_rule_and_remedy(stack: Stack, url: object, why: str) -> None:
    body = json.dumps(POND | {"webhook_url": url})
    headers = {"content-type": "application/json"}
    text = refusal(stack.http().post("/v2/mochi-1", content=body, headers=headers), 400)
    assert text.startswith("`webhook_url` must ")
    assert why in text
    assert "secret" not in text


def test_two_urls_are_refused_and_none_is_taken_for_none(stack: Stack, there: Receiver) -> None:
    client = stack.http()
    body = POND | {"webhook_url": "https://one.example/"}
    answer = client.post("/v2/mochi-1", json=body, params={"webhook_url": "https://two.example/"})
    assert "send one" in refusal(answer, 400)
    one = {"webhook_url": there.url}
    for body, query, kept in (
        ({"webhook_url": None}, {}, None),
        ({"webhook_url": ""}, {}, None),
        ({}, {"webhook_url": ""}, None),
        ({"webhook_url": ""}, one, there.url),
        (one, {"webhook_url": ""}, there.url),
    ):
        answer = client.post("/v2/mochi-1", json=POND | body, params=query)
        assert answer.is_success, answer.text
        request_id = answer.json()["request_id"]
        assert stack.record(request_id).get("webhook_url") == kept


def test_a_second_finish_does_not_lose_its_webhook(customer: Customer) -> None:
    client = customer.http
    draft_id = customer.submit(draft_steps=5)
    customer.told(draft_id)
    url, there = f"/v2/requests/{draft_id}/finish", customer.there.url
    first = client.post(url, json={"webhook_url": there}).json()
    for body in ({"webhook_url": there}, {}):
        assert client.post(url, json=body).json() == first
    refused = client.post(url, json={"webhook_url": f"{there}?other"})
    assert refusal(refused, 409) == (
        f"Request {first['request_id']} finishes this draft already, with another `webhook_url` or "
        "none. Leave `webhook_url` out to get that request; or cancel or delete it, and finish the "
        "draft again."
    )
    customer.told(first["request_id"])
