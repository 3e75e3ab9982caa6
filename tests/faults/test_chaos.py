"""The chaos run as a test: everything breaks, and every accepted request still ends once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from tests.chaos.accounting import COMPLETED, WORKER_LOST
from tests.chaos.clients import SAY_TWICE
from tests.chaos.experiment import experiment
from tests.chaos.faults import PAUSES, Kind
from tests.chaos.report import Plan, Report, broken_promises


def assert_promises_are_kept(report: Report, jobs: int, figure: Callable[[str], None]) -> None:
    assert list(broken_promises(report)) == []
    kept = report.account
    assert (kept.lost, kept.duplicated, kept.violations) == ([], [], [])
    # Some submits are of two requests, and drafts are finished.
    assert kept.acknowledged == kept.terminal >= jobs
    assert kept.answers == {1: kept.acknowledged}
    assert set(kept.failed) <= {WORKER_LOST}
    assert kept.completed > jobs / 2, COMPLETED
    assert report.replayed >= jobs // SAY_TWICE
    assert (report.gave_up, report.died, report.stuck, report.processes_left) == (0, [], [], [])
    runs = ", ".join(f"{count} ran {times}x" for times, count in kept.runs.items())
    faults = sum(report.faults.values())
    figure(f"of {kept.acknowledged} acknowledged {kept.terminal} ended: {runs}; {faults} faults")
    assert set(report.logged_errors) <= {"rank.died"}  # of a follower that was killed


def test_f28_nothing_is_lost_or_done_twice_in_a_short_chaos(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    plan = Plan(seconds=12, seed=1, jobs=24, workers=3, lease_seconds=2)
    report = experiment(plan, tmp_path)
    assert_promises_are_kept(report, 24, figure)
    assert set(report.faults) == PAUSES.keys() - {Kind.CONNECTIONS}
    assert sum(report.account.reruns.values()) >= 1  # it was a chaos
    assert report.cache.keys() >= {"hit", "miss", "wait"}
    assert min(report.kinds.values()) >= 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_f28_nothing_is_lost_or_done_twice_in_a_minute_of_chaos(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    plan = Plan(seconds=60, seed=1, jobs=120, workers=3, lease_seconds=10)
    report = experiment(plan, tmp_path)
    assert_promises_are_kept(report, 120, figure)


def test_f28_nothing_is_lost_when_a_broker_drops_all_connections_again_and_again(
    tmp_path: Path, redis: Redis, redis_url: str, figure: Callable[[str], None]
) -> None:
    plan = Plan(seconds=10, seed=1, jobs=20, workers=3, lease_seconds=2)
    report = experiment(plan, tmp_path, redis_url)
    assert_promises_are_kept(report, 20, figure)
    assert report.faults[Kind.CONNECTIONS] >= 1
    assert redis.dbsize() == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_or_done_twice_where_a_worker_is_a_group(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    plan = Plan(seconds=60, seed=1, jobs=60, workers=3, lease_seconds=3, groups=1)
    report = experiment(plan, tmp_path)
    assert_promises_are_kept(report, 60, figure)
    assert report.logged_errors["rank.died"] >= 1
    logs = (log.read_text() for log in tmp_path.glob("worker-*.log"))
    assert sum(log.count("run.completed") for log in logs if "2 x CPU" in log) >= 1
