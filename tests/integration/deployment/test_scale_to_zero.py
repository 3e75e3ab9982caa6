"""Workers that an autoscaler starts and stops by the gateway's figure, to zero and back."""

from __future__ import annotations

import math
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.stack import Stack, eventually
from worker.store.fleet import fleet

POND = {"prompt": "a pond", "frames": 1, "steps": 10}
MOST_WORKERS = 3
REQUESTS_PER_WORKER = 2


class Autoscaler:
    """Does as KEDA and the cluster do: reads the figure, starts workers, sends SIGTERM to them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.workers: list[subprocess.Popen[bytes]] = []
        self.stopped: list[subprocess.Popen[bytes]] = []
        self.most = self.stopped_in_a_video = 0

    def pass_once(self) -> bool:
        """Whether there is nothing to do, and no worker left."""
        unfinished = self.figure("mochi_unfinished_requests")
        wanted = min(math.ceil(unfinished / REQUESTS_PER_WORKER), MOST_WORKERS)
        while len(self.workers) < wanted:
            self.workers.append(self.stack.start("worker"))
        while len(self.workers) > wanted:
            self.stop_one()
        self.most = max(self.most, len(self.workers))
        return not self.workers

    def stop_one(self) -> None:
        """A busy one if there is one: the cluster does not know which are."""
        busy = {each.name for each in fleet(self.stack.redis) if each.job}
        self.workers.sort(key=lambda process: not any(f"-{process.pid}-" in it for it in busy))
        chosen = self.workers.pop(0)
        self.stopped_in_a_video += any(f"-{chosen.pid}-" in name for name in busy)
        chosen.terminate()
        self.stopped.append(chosen)

    def figure(self, name: str) -> float:
        """The sum over its labels."""
        text = httpx2.get(f"{self.stack.url}/metrics").text
        samples = [each for it in text_string_to_metric_families(text) for each in it.samples]
        return sum(sample.value for sample in samples if sample.name == name)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A gateway and its broker; no worker."""
    settings = {"wait_for_worker": "true", "metrics_public": "true", "drain_seconds": "60"}
    with Stack(tmp_path, engine="fake", **settings) as stack:
        stack.start_gateway()
        yield stack


def test_workers_scale_from_zero_and_back_without_a_lost_request_or_a_killed_run(
    stack: Stack,
) -> None:
    scaler, client = Autoscaler(stack), stack.http()
    with ThreadPoolExecutor() as pool:
        blocking = pool.submit(client.post, "/v1/mochi-1", json=POND)
        eventually(lambda: scaler.figure("mochi_unfinished_requests") == 1)
        submitted = [client.post("/v2/mochi-1", json=POND).json() for _ in range(8)]
        eventually(scaler.pass_once)
        assert blocking.result().headers["content-type"] == "video/mp4"
    assert scaler.most == MOST_WORKERS
    assert scaler.stopped_in_a_video > 0
    for each in submitted:
        assert client.get(each["status_url"]).json()["status"] == "COMPLETED"
        assert stack.record(each["request_id"])["attempt"] == "1"
    assert scaler.figure("mochi_requeues_total") == 0
    # The signal itself ends one that has not loaded its model yet.
    assert {process.wait(60) for process in scaler.stopped} <= {0, -signal.SIGTERM}
