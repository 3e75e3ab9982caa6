"""The faults of the chaos run, and the options that it refuses."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from redis import Redis
from typer.testing import CliRunner

from tests.chaos.__main__ import app
from tests.chaos.faults import PAUSES, Fault, Kind, rolls, schedule


@pytest.fixture(autouse=True)
def _environ_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MOCHI_")}
    monkeypatch.setattr(os, "environ", outside)


def faults(seed: int, *, seconds: float = 120, broker: Kind = Kind.BROKER) -> list[Fault]:
    return schedule(seed, seconds=seconds, workers=3, gateways=2, lease_seconds=10, broker=broker)


def refused(*options: str) -> str:
    result = CliRunner().invoke(app, options, env={"COLUMNS": "200"})
    assert result.exit_code != 0
    return result.output


def test_a_seed_gives_the_same_faults_again() -> None:
    assert faults(7) == faults(7)
    assert faults(7) != faults(8)


def test_faults_of_each_kind_come_as_often_as_they_should_and_end_in_time() -> None:
    for seed in range(20):
        drawn = faults(seed)
        assert {fault.kind for fault in drawn} == PAUSES.keys() - {Kind.CONNECTIONS}
        assert drawn == sorted(drawn, key=lambda fault: fault.at)
        assert all(fault.at + fault.seconds < 120 for fault in drawn)
        for kind, (least, _) in PAUSES.items():
            times = [fault.at for fault in drawn if fault.kind is kind]
            assert all(later - earlier >= least for earlier, later in pairwise(times))


def test_a_pause_outlasts_the_lease_and_the_broker_is_away_for_three_seconds_at_most() -> None:
    drawn = faults(1)
    assert all(12 <= fault.seconds <= 18 for fault in drawn if fault.kind is Kind.PAUSE_WORKER)
    away = [fault.seconds for fault in drawn if fault.kind is Kind.BROKER]
    assert min(away) == 0
    assert max(away) <= 3


def test_an_upgrade_goes_through_all_workers_first_and_a_rollback_through_all_gateways() -> None:
    steps = rolls(seconds=90, workers=2, gateways=2)
    places = [(step.kind is Kind.ROLL_GATEWAY, step.target) for step in steps]
    there = [(False, 0), (False, 1), (True, 0), (True, 1)]
    assert places == [*there, *there[2:], *there[:2]]
    assert [step.at for step in steps] == [10, 20, 30, 40, 50, 60, 70, 80]


def test_an_upgrade_from_a_commit_that_the_clone_lacks_is_refused() -> None:
    message = refused("--upgrade-from", "0" * 40)
    assert "has no commit" in message
    assert "git fetch --tags" in message


def test_every_worker_and_gateway_may_be_struck() -> None:
    drawn = faults(1, seconds=300)
    assert {fault.target for fault in drawn if fault.kind is Kind.KILL_WORKER} == {0, 1, 2}
    assert {fault.target for fault in drawn if fault.kind is Kind.KILL_GATEWAY} == {0, 1}


def test_a_broker_that_is_not_ours_is_never_killed() -> None:
    kinds = {fault.kind for fault in faults(1, broker=Kind.CONNECTIONS)}
    assert Kind.BROKER not in kinds
    assert Kind.CONNECTIONS in kinds


def test_a_database_that_holds_something_is_refused_and_left_alone(
    redis: Redis, redis_url: str
) -> None:
    redis.set("somebody", "else's")
    message = refused("--broker", "external", "--redis-url", redis_url)
    assert "holds 1 keys: it is no place for an experiment" in message
    assert redis.get("somebody") == "else's"
    assert redis.dbsize() == 1


def test_options_that_make_no_sense_are_refused() -> None:
    assert "--redis-url" in refused("--broker", "external")
    assert "either --jobs or --rate" in refused("--jobs", "10", "--rate", "2")
    assert "MOCHI_LEASE_SECONDS" in refused("--lease", "1")
