"""What every key used, by the command and over HTTP."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from models.mock.scenario import SCENARIO
from server.keys.lookup import Scope
from tests.support.stack import Stack, eventually
from worker.store import keyspace

POND = {"prompt": "a pond", "frames": 2, "steps": 10}
NUMBERS = (
    *("requests", "completed", "cancelled", "blocked", "failed"),
    *("gpu_seconds", "credits"),
)
DAYS = "2"
"""A test may run at midnight."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(
        tmp_path_factory.mktemp("usage"),
        engine="fake",
        fake_step_seconds="0.03",
        price_base="0.1",
    ) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


@pytest.fixture(scope="module")
def used(stack: Stack) -> dict[str, str]:
    """The keys of two teams that have used something, by name."""
    keys = {"team-a": stack.key("team-a"), "team-b": stack.key("team-b")}
    bodies = [POND, POND, POND | {SCENARIO: "out_of_memory"}, POND | {SCENARIO: "blocked"}]
    for key, asked in ((keys["team-a"], bodies), (keys["team-b"], bodies[:1])):
        for body in asked:
            stack.http(key).post("/v1/mochi-1", json=body)
    client = stack.http(keys["team-a"])
    waiting = client.post("/v2/mochi-1", json=POND | {"steps": 75}).json()["response_url"]
    client.delete(waiting)
    eventually(lambda: client.get(waiting).json()["status"] == "FAILED")
    return keys


def usage(stack: Stack, *arguments: str) -> str:
    done = stack.run("usage", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def summed(rows: list[dict[str, Any]], **where: str) -> dict[str, Decimal]:
    mine = [row for row in rows if all(row[name] == where[name] for name in where)]
    return {name: sum((Decimal(str(row[name])) for row in mine), Decimal(0)) for name in NUMBERS}


def test_a_table_has_a_line_for_each_key_and_the_sum(stack: Stack, used: dict[str, str]) -> None:
    lines = usage(stack, "--days", DAYS).splitlines()
    assert lines[0].split() == [
        "day", "key", "requests", "completed", "cancelled", "blocked", "failed",
        "failed", "by", "code", "gpu", "seconds", "credits",
    ]  # fmt: skip
    assert any("team-a" in line and "out_of_memory: 1" in line for line in lines)
    assert any("team-b" in line for line in lines)
    assert lines[-1].split()[:6] == ["all", "6", "3", "1", "1", "1"]
    assert re.fullmatch(r"[0-9]+\.[0-9]{3}", lines[-1].split()[-2])
    assert lines[-1].split()[-1] == "0.3"


def test_json_has_the_figures_of_the_route(stack: Stack, used: dict[str, str]) -> None:
    rows = json.loads(usage(stack, "--days", DAYS, "--format", "json"))
    for name, key in used.items():
        routes = stack.http(key).get(f"/v1/usage?days={DAYS}").json()["usage"]
        assert [row for row in rows if row["key"] == name] == [
            row | {"key": name} for row in routes
        ]


def test_csv_has_a_column_for_each_figure(stack: Stack, used: dict[str, str]) -> None:
    rows = [*csv.DictReader(io.StringIO(usage(stack, "--days", DAYS, "--format", "csv")))]
    assert summed(rows, key="team-a") | {"gpu_seconds": Decimal(0)} == {
        "requests": 5, "completed": 2, "cancelled": 1, "blocked": 1, "failed": 1,
        "gpu_seconds": 0, "credits": Decimal("0.2"),
    }  # fmt: skip
    assert summed(rows, key="team-a")["gpu_seconds"] > Decimal("0.2")


def test_one_key_can_be_asked_for(stack: Stack, used: dict[str, str]) -> None:
    for key in ("team-b", stack.owner(used["team-b"])):
        rows = json.loads(usage(stack, "--days", DAYS, "--format", "json", "--key", key))
        assert {row["key"] for row in rows} == {"team-b"}


def test_a_day_that_is_asked_for_is_the_only_one(stack: Stack, used: dict[str, str]) -> None:
    before = (datetime.now(UTC) - timedelta(days=9)).date()
    stack.redis.hset(
        f"{keyspace.USAGE}{(before - datetime(1970, 1, 1, tzinfo=UTC).date()).days}",
        f"{stack.owner(used['team-a'])} requests",
        77,
    )
    asked = usage(stack, "--first", str(before), "--last", str(before), "--format", "json")
    assert [(row["day"], row["requests"]) for row in json.loads(asked)] == [(str(before), 77)]


def test_days_are_kept_for_400_days(stack: Stack, used: dict[str, str]) -> None:
    (day, *_) = sorted(map(str, stack.redis.keys(f"{keyspace.USAGE}*")), reverse=True)
    assert 400 * 86_400 < int(stack.redis.ttl(day)) <= 401 * 86_400


@pytest.mark.parametrize("arguments", [["--days", "0"], ["--days", "401"]])
def test_more_days_than_are_kept_are_refused(stack: Stack, arguments: list[str]) -> None:
    refused = stack.run("usage", *arguments)
    assert refused.returncode == 2
    assert "Invalid value for '--days'" in refused.stderr


def test_a_key_sees_its_own_usage_and_an_admin_that_of_all(
    stack: Stack, used: dict[str, str]
) -> None:
    path = f"/v1/usage?days={DAYS}"
    mine = stack.http(used["team-a"]).get(path).json()["usage"]
    assert {row["key_id"] for row in mine} == {stack.owner(used["team-a"])}
    plain = stack.key(scopes=[Scope.READ])
    assert stack.http(plain).get(path).json() == {"usage": []}
    admin = stack.http(stack.key(scopes=[Scope.READ, Scope.ADMIN])).get(path).json()["usage"]
    assert {row["key_id"] for row in admin} >= {stack.owner(key) for key in used.values()}


@pytest.mark.parametrize("days", ["0", "401", "x", "", "1.5", "-1"])
def test_a_wrong_number_of_days_is_400(stack: Stack, days: str) -> None:
    answer = stack.http(stack.key()).get("/v1/usage", params={"days": days})
    assert answer.status_code == 400
    assert "`days` must be a whole number from 1 to 400" in answer.json()["error"]


def test_runs_that_were_cancelled_have_used_the_gpu(stack: Stack) -> None:
    key = stack.key()
    client = stack.http(key)
    request_id = client.post("/v2/mochi-1", json=POND | {"steps": 75}).json()["request_id"]
    eventually(lambda: stack.record(request_id)["status"] == "PROCESSING")
    client.delete(f"/v2/requests/{request_id}")
    eventually(lambda: stack.record(request_id)["status"] == "FAILED")
    (row,) = client.get(f"/v1/usage?days={DAYS}").json()["usage"][-1:]
    assert (row["cancelled"], row["failed"]) == (1, {})
    assert row["gpu_seconds"] > 0
