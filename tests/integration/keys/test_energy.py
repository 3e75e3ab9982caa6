"""The energy of videos, of a simulated card: in results, usage and metrics."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from models.mock.card_speed import MockSpeed
from models.mock.scenario import SCENARIO
from models.request.params import GenerateParams
from server.keys.lookup import Scope
from tests.support.stack import Stack, eventually
from worker.store import keyspace

POND: dict[str, Any] = {"prompt": "a pond", "frames": 1, "steps": 10}
SPEED = "h100/600"
DAYS = "2"
"""A test may run at midnight."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("energy")
    with Stack(folder, engine="fake", fake_step_seconds="0", mock_speed=SPEED) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


def expected() -> float:
    step = MockSpeed.parse(SPEED).step_joules(GenerateParams(**POND))
    assert step
    return 10 * step


def test_a_result_tells_the_joules_of_its_run(stack: Stack) -> None:
    result = stack.sdk().run("mochi-1", **POND)
    assert result["metrics"]["energy_joules"] == pytest.approx(expected(), abs=0.001)


def test_a_failure_tells_none_and_usage_has_those_of_every_run(stack: Stack) -> None:
    key = stack.key("team-e")
    client = stack.http(key)
    assert client.post("/v1/mochi-1", json=POND).is_success
    failed = client.post("/v1/mochi-1", json=POND | {SCENARIO: "fail"}).json()
    assert "energy_joules" not in failed["metrics"]
    (row,) = client.get(f"/v1/usage?days={DAYS}").json()["usage"]
    assert expected() < row["energy_joules"] < 2 * expected()
    arguments = ("usage", "--days", DAYS, "--key", "team-e", "--format")
    (shown,) = json.loads(stack.run(*arguments, "json").stdout)
    assert shown["energy_joules"] == row["energy_joules"]
    (line,) = csv.DictReader(io.StringIO(stack.run(*arguments, "csv").stdout))
    assert line["energy_joules"] == f"{row['energy_joules']:.3f}"
    head, *_, last = stack.run(*arguments, "table").stdout.splitlines()
    assert head.rstrip().endswith("energy joules")
    assert last.split()[-1] == line["energy_joules"]


def test_the_history_has_them_after_the_record_has_expired(stack: Stack) -> None:
    client = stack.http()
    request_id = client.post("/v2/mochi-1", json=POND).json()["request_id"]
    path = f"/inference-request/request-history/{request_id}"
    eventually(lambda: client.get(path).json()["model_status"] == "COMPLETED")
    kept = client.get(path).json()
    assert kept["energy_joules"] == pytest.approx(expected(), abs=0.001)
    stack.redis.delete(keyspace.record(request_id))
    gone = client.get(path).json()
    assert gone == kept | {"generation_url": None, "request_body": gone["request_body"]}


def test_the_metrics_count_the_joules_of_all(stack: Stack) -> None:
    scraper = stack.http(stack.key(scopes=[Scope.ADMIN]))

    def total() -> float:
        lines = scraper.get("/metrics").text.splitlines()
        (value,) = (line.split()[1] for line in lines if line.startswith("mochi_energy_joules_to"))
        return float(value)

    before = total()
    stack.http().post("/v1/mochi-1", json=POND)
    assert total() - before == pytest.approx(expected(), abs=0.001)
