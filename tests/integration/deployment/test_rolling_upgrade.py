"""The last release beside this one: an upgrade under load, the rollback, and keys of either."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.chaos.experiment import GATEWAYS, experiment
from tests.chaos.faults import Kind
from tests.chaos.releases import has_history, last_release, unpack, within
from tests.chaos.report import Plan, broken_promises
from tests.support.stack import Stack, eventually
from worker.store import keyspace

RELEASE = last_release()
WORKERS = 2

pytestmark = pytest.mark.skipif(
    not has_history(RELEASE),
    reason=f"this clone has no commit {RELEASE}: `git fetch --tags --unshallow`",
)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The last release."""
    return within(unpack(RELEASE, tmp_path_factory.mktemp("release")))


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.01") as stack:
        yield stack


def output(client: httpx2.Client, request_id: str) -> str:
    """The link to the video, once there is one."""
    return str(client.get(f"/v2/requests/{request_id}").json().get("output", ""))


def test_an_upgrade_and_its_rollback_under_load_lose_and_double_nothing(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    plan = Plan(seconds=6, seed=1, jobs=6, workers=WORKERS, lease_seconds=10, upgrade_from=RELEASE)
    report = experiment(plan, tmp_path)
    assert list(broken_promises(report)) == []
    kept = report.account
    count = kept.acknowledged
    assert (kept.lost, kept.duplicated, kept.violations) == ([], [], [])
    assert count >= plan.jobs
    assert kept.completed == count
    assert kept.runs == {1: count}  # each once, also those that ran when their worker was told
    assert report.deliveries == {1: count}
    assert report.errors.keys().isdisjoint(map(str, range(400, 600)))
    assert report.faults == {Kind.ROLL_WORKER: 2 * WORKERS, Kind.ROLL_GATEWAY: 2 * GATEWAYS}
    assert (report.died, report.stuck, report.processes_left) == ([], [], [])
    assert report.logged_errors == {}
    figure(
        f"upgrade from {RELEASE[:12]} and back: {count} acknowledged, {kept.terminal} ended, "
        f"errors that clients met: {report.errors or 'none'}"
    )


def test_a_key_of_either_release_is_a_key_of_the_other(
    stack: Stack, release: tuple[str, str]
) -> None:
    urls = [stack.start_gateway(within=release), stack.start_gateway()]
    command = [*release, sys.executable, "-P", "-m", "mochi_server", "keys"]
    environ = os.environ | stack.environ
    made = subprocess.run(
        [*command, "create", "of the last release", "--credits", "7"],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    keys = {made: 7, stack.key("of this release", credits="9"): 9}
    for key, credits_ in keys.items():
        for url in urls:
            answer = httpx2.get(f"{url}/v1/get-user-credits", headers={"x-api-key": key})
            assert answer.json()["credits"] == credits_
    revoke = [*command, "revoke", "of this release"]
    subprocess.run(revoke, env=environ, capture_output=True, check=True)
    refused = httpx2.get(f"{urls[1]}/v1/get-user-credits", headers={"x-api-key": list(keys)[1]})
    assert refused.status_code == 401


def test_a_request_of_either_release_is_made_and_served_by_the_other(
    stack: Stack, release: tuple[str, str]
) -> None:
    key = stack.key()
    for gateway, worker, reader in (((), release, release), (release, (), ())):
        stack.start_gateway(within=gateway)
        body = {"prompt": "a pond", "frames": 2, "steps": 10}
        waiting = stack.http(key).post("/v2/mochi-1", json=body).json()["request_id"]
        process = stack.start_worker(within=worker)
        stack.start_gateway(within=reader)
        client = stack.http(key)
        link = eventually(partial(output, client, waiting))
        assert client.get(link).content[4:8] == b"ftyp"
        process.terminate()
        assert process.wait(60) == 0


def test_the_last_release_neither_runs_nor_loses_requests_for_a_model_that_it_does_not_know(
    tmp_path: Path, release: tuple[str, str]
) -> None:
    """Its worker lives, and its reconciler looks, while a run of such a request is lost."""
    fast = {"models": "mochi-1-fast", "fake_step_seconds": "0.5"}
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.01", lease_seconds="2") as stack:
        stack.start_gateway(models="mochi-1,mochi-1-fast")
        stack.start_worker(within=release)
        client = stack.http()
        pond = {"prompt": "a pond", "frames": 1}
        request_id = client.post("/v2/mochi-1-fast", json=pond).json()["request_id"]
        assert client.post("/v1/mochi-1", json=pond).is_success  # made by the older worker
        assert stack.record(request_id)["status"] == "QUEUED"

        lost = stack.start_worker(**fast)
        eventually(lambda: stack.record(request_id).get("step", "0") != "0")
        lost.kill()
        lost.wait()
        leases = keyspace.QueueKeys.of("mochi-1-fast").leases
        ends_at = stack.redis.zscore(leases, request_id)
        assert ends_at is not None
        eventually(
            lambda: time.time() * 1000 > ends_at + 3000
        )  # the older worker looks every second
        assert client.post("/v1/mochi-1", json=pond).is_success
        record = stack.record(request_id)
        assert (record["status"], record["attempt"]) == ("PROCESSING", "1")

        stack.start_worker(**fast | {"fake_step_seconds": "0.01"})
        link = eventually(partial(output, client, request_id))
        assert client.get(link).content[4:8] == b"ftyp"
        assert stack.record(request_id)["attempt"] == "2"
