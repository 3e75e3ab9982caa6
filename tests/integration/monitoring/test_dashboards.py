"""Alert rules and dashboard ask for figures and labels that there are, in PromQL that there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from models.engine import DeviceUse
from models.mock.scenario import SCENARIO
from tests.support.stack import Stack
from worker.store.fleet import fleet

DOCKER = Path(__file__).parents[3] / "docker"
POND = {"prompt": "a pond", "frames": 1, "steps": 10}
OF_PROMETHEUS = {"instance", "job", "namespace", "pod"}
"""Labels that it gives to all it reads; `namespace` and `pod` on Kubernetes alone."""
OWN = {"up": OF_PROMETHEUS}
"""Figures of its own, with their labels."""
FOR_AUTOSCALERS = {"mochi_unfinished_requests", "mochi_model_unfinished_requests"}
"""Each is the sum of two figures that are shown apart."""
INTERVAL = {"$__rate_interval": "5m"}


def rules() -> list[dict[str, Any]]:
    text = (DOCKER / "prometheus" / "rules.yaml").read_text()
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def targets() -> list[dict[str, Any]]:
    board = json.loads((DOCKER / "grafana" / "dashboards" / "mochi.json").read_text())
    return [target for panel in board["panels"] for target in panel["targets"]]


def queries() -> list[str]:
    asked = [str(each["expr"]) for each in [*rules(), *targets()]]
    for name, value in INTERVAL.items():
        asked = [query.replace(name, value) for query in asked]
    return asked


def parts(expression: Any) -> Iterator[Any]:
    """An expression and all within it."""
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if hasattr(expression, name):
            yield from parts(getattr(expression, name))
    for argument in getattr(expression, "args", ()):
        yield from parts(argument)


def selectors(expression: Any) -> dict[str, set[str]]:
    """Names of the figures that are asked for, each with the labels that it must have."""
    found: dict[str, set[str]] = {}
    for part in parts(expression):
        if isinstance(part, promql_parser.VectorSelector):
            labels = {matcher.name for matcher in part.matchers.matchers}
            assert part.name
            found.setdefault(part.name, set()).update(labels)
    return found


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Each figure of a stack that has run some requests, with its labels."""
    folder = tmp_path_factory.mktemp("dashboards")
    with Stack(folder, engine="fake", fake_step_seconds="0.01", metrics_public="true") as stack:
        stack.start_gateway()
        stack.start_worker()
        client = stack.http()
        client.post("/v1/mochi-1", json=POND)
        client.post("/v1/mochi-1", json=POND, headers={SCENARIO: "fail"})
        (worker,) = fleet(stack.redis)
        use = DeviceUse("cuda:0", 4, 3, 0.5, 1, 2)  # here is no GPU to report
        stack.store.report_devices(worker.name, [use])
        text = httpx2.get(f"{stack.url}/metrics").text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels, OF_PROMETHEUS)
    return found | OWN


def test_every_query_asks_for_figures_and_labels_that_there_are(live: dict[str, set[str]]) -> None:
    asked: set[str] = set()
    for query in queries():
        expression = promql_parser.parse(query)
        for name, labels in selectors(expression).items():
            assert name in live, query
            assert labels <= live[name], query
            asked.add(name)
        for part in parts(expression):
            if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
                known = set[str]().union(*(live[name] for name in selectors(part)))
                assert {*part.modifier.labels} <= known, query
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in live if name.startswith("mochi")}
    assert ours - FOR_AUTOSCALERS <= families, "every metric is in a dashboard or an alert"


def test_every_legend_names_labels_that_are_left(live: dict[str, set[str]]) -> None:
    for target in targets():
        query = target["expr"].replace(*next(iter(INTERVAL.items())))
        expression = promql_parser.parse(query)
        left = set[str]().union(*(live[name] for name in selectors(expression)))
        outer = next(
            (it for it in parts(expression) if isinstance(it, promql_parser.AggregateExpr)), None
        )
        if outer is not None:
            left = {*outer.modifier.labels} if outer.modifier is not None else set()
        assert {*re.findall(r"{{(\w+)}}", target["legendFormat"])} <= left, query


def test_what_the_broker_knows_is_not_added_up_over_gateways() -> None:
    for query in queries():
        for part in parts(promql_parser.parse(query)):
            if isinstance(part, promql_parser.AggregateExpr) and str(part.op) in {"sum", "count"}:
                names = [*selectors(part)]
                is_brokers = not any(re.match("mochi_(http|gateway)", name) for name in names)
                inner = part.expr
                is_once = isinstance(inner, promql_parser.AggregateExpr) and str(inner.op) == "max"
                assert is_once is is_brokers, query


def test_a_dashboard_shows_the_figures_of_one_release() -> None:
    """A Prometheus may read several; the chart writes each one's own job into its dashboard."""
    for target in targets():
        query = target["expr"].replace(*next(iter(INTERVAL.items())))
        for part in parts(promql_parser.parse(query)):
            if isinstance(part, promql_parser.VectorSelector):
                matchers = {it.name: it.value for it in part.matchers.matchers}
                assert matchers.get("job") == "mochi", query


def test_compose_mounts_what_there_is() -> None:
    compose = yaml.safe_load((DOCKER.parent / "compose.yaml").read_text())
    for service in ("prometheus", "alertmanager", "grafana"):
        definition = compose["services"][service]
        assert definition["profiles"] == ["metrics"]
        for volume in definition["volumes"]:
            source = volume.partition(":")[0]
            is_there = (DOCKER.parent / source).exists() if source[0] == "." else True
            assert is_there, volume
