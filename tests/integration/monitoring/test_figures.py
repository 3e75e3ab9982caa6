"""`/metrics`, as Prometheus reads it, of two gateways and two workers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from models.mock.scenario import SCENARIO
from server.keys.lookup import Scope
from tests.support.stack import Stack, eventually
from tests.support.wire import another_gateway, refusal, stranger

POND = {"prompt": "a pond", "frames": 1, "steps": 10}


class Scrape:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.families: dict[str, Metric] = {
            family.name: family for family in text_string_to_metric_families(text)
        }

    def value(self, name: str, **labels: str) -> float:
        """Of the samples of a metric that have these labels, all together."""
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        """All values of a label."""
        return {
            sample.labels[label]
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name
        }


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(
        tmp_path_factory.mktemp("figures"),
        engine="fake",
        fake_step_seconds="0.01",
        price_base="0.5",
    ) as stack:
        stack.start_gateway()
        stack.start_worker()
        stack.start_worker()
        yield stack


@pytest.fixture(scope="module")
def scrape(stack: Stack) -> Callable[[str], Scrape]:
    key = stack.key(scopes=[Scope.ADMIN])

    def read(url: str) -> Scrape:
        answer = httpx2.get(f"{url}/metrics", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return Scrape(answer.text)

    return read


def test_every_gateway_shows_the_same_of_the_broker_and_its_own_of_http(
    stack: Stack, scrape: Callable[[str], Scrape]
) -> None:
    other = another_gateway(stack)
    before = scrape(other)
    with stack.http() as client:
        for wished in ({}, {}, {SCENARIO: "fail"}):
            client.post("/v1/mochi-1", json=POND | wished)
    here, there = scrape(stack.url), scrape(other)

    def rise(scraped: Scrape, name: str, **labels: str) -> float:
        return scraped.value(name, **labels) - before.value(name, **labels)

    for seen in (here, there):
        assert rise(seen, "mochi_submits_total", outcome="accepted") == 3
        assert rise(seen, "mochi_requests_ended_total", outcome="completed") == 2
        assert rise(seen, "mochi_requests_ended_total", outcome="internal") == 1
        assert rise(seen, "mochi_wait_seconds_count") == 3
        assert rise(seen, "mochi_run_seconds_count") == 2
        assert rise(seen, "mochi_step_seconds_count") == 2
        assert rise(seen, "mochi_credits_charged_total") == 1
        assert 0 < rise(seen, "mochi_gpu_seconds_total") < 60
        assert seen.labels("mochi_stage_seconds_count", "stage") == {
            *("denoising", "video", "marking", "publishing"),
        }
        assert seen.value("mochi_broker_up") == 1
        assert seen.value("mochi_live_workers") == seen.value("mochi_live_gpus") == 2
        assert seen.value("mochi_worker_info", model="light mock") == 2
        assert seen.value("mochi_waiting_requests") == 0
    calls = {"route": "/v1/mochi-1", "verb": "POST"}
    assert here.value("mochi_http_request_seconds_count", **calls) == 3
    assert there.value("mochi_http_request_seconds_count", **calls) == 0
    assert here.value("mochi_http_request_seconds_count", **calls, status="422") == 1


def test_a_bucket_holds_those_before_it(stack: Stack, scrape: Callable[[str], Scrape]) -> None:
    stack.http().post("/v1/mochi-1", json=POND)
    for name in ("mochi_run_seconds", "mochi_wait_seconds", "mochi_step_seconds"):
        samples = scrape(stack.url).families[name].samples
        buckets = [sample.value for sample in samples if sample.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == next(it.value for it in samples if it.name.endswith("_count")) > 0


def test_no_id_and_no_odd_path_or_verb_becomes_a_label(
    stack: Stack, scrape: Callable[[str], Scrape]
) -> None:
    client = stack.http()
    for number in range(3):
        client.get(f"/v2/requests/{number}/status")
        client.get(f"/odd/{number}")
        client.request("PROPFIND", f"/v2/requests/{number}")
    with stranger(stack) as outsider:
        outsider.get("/v2/requests/1/status")
    seen = scrape(stack.url)
    name = "mochi_http_request_seconds_count"
    routes = seen.labels(name, "route")
    assert {"/v2/requests/{request_id}/status", "other"} <= routes
    assert not [route for route in routes if re.search(r"/\d|odd", route)]
    assert seen.value(name, route="/v2/requests/{request_id}/status", status="404") == 3
    assert seen.value(name, route="other", status="404") == 3
    assert seen.value(name, route="other", status="401") >= 1
    assert seen.value(name, verb="other", status="405") == 3


def test_figures_need_a_key_with_the_scope_unless_they_are_public(stack: Stack) -> None:
    with stranger(stack) as outsider:
        refusal(outsider.get("/metrics"), 401)
    assert "`admin`" in refusal(stack.http().get("/metrics"), 403)
    public = another_gateway(stack, metrics_public="true")
    answer = httpx2.get(f"{public}/metrics")
    assert Scrape(answer.text).value("mochi_live_workers") == 2
    for path in ("/metrics2", "/metrics/more", "/v1/usage"):
        assert httpx2.get(public + path).status_code == 401


def test_without_a_broker_a_public_gateway_still_tells_of_itself(tmp_path: Path) -> None:
    with Stack(tmp_path, metrics_public="true") as stack:
        url = stack.start_gateway()
        stack.broker.stop()
        eventually(lambda: httpx2.get(f"{url}/readyz", timeout=30).status_code == 503)
        seen = Scrape(httpx2.get(f"{url}/metrics", timeout=30).text)
        assert seen.value("mochi_broker_up") == 0
        assert "mochi_live_workers" not in seen.families
        assert seen.value("mochi_http_request_seconds_count", route="/readyz", status="503") >= 1
