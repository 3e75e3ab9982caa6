"""Taking workers and gateways out of service, and putting new ones in, while requests come in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from models.version import this_build
from tests.support.stack import Stack, eventually
from worker.store.fleet import fleet

SECONDS = {"lease_seconds": "2", "drain_seconds": "1"}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.05") as stack:
        stack.start_gateway()
        yield stack


def submit(stack: Stack, key: str, steps: int) -> str:
    answer = stack.http(key).post(
        "/v2/mochi-1", json={"prompt": "a pond", "steps": steps, "frames": 1}
    )
    return str(answer.json()["request_id"])


def runs(stack: Stack, request_id: str) -> bool:
    return int(stack.record(request_id).get("step", 0)) >= 2


def test_the_list_says_who_works_at_what(stack: Stack) -> None:
    assert "No live worker" in stack.run("workers", "list").stderr
    # It must still run when the command has started; and then goes back at once.
    slow = {"fake_step_seconds": "0.5", "drain_seconds": "0"}
    idle, busy = stack.start_worker(**slow), stack.start_worker(**slow)
    request_id = submit(stack, stack.key(), 75)
    eventually(lambda: runs(stack, request_id))
    told = stack.run("workers", "list")
    assert told.returncode == 0, told.stderr
    lines = {line.split()[0]: line for line in told.stdout.splitlines()[1:]}
    assert len(lines) == 2
    assert {f"-{idle.pid}-", f"-{busy.pid}-"} == {f"-{name.split('-')[-2]}-" for name in lines}
    name = stack.record(request_id)["worker"]
    assert f"running  {request_id}" in lines[name]
    assert "/75" in lines[name]
    assert "light mock, CPU" in lines[name]
    assert all(f"  {this_build().version}  " in line for line in lines.values())
    (other,) = set(lines) - {name}
    assert "idle" in lines[other]


def test_a_drained_worker_finishes_its_request_and_ends_well(stack: Stack) -> None:
    worker = stack.start_worker(**SECONDS, fake_step_seconds="0.15")  # commands take a second each
    key = stack.key()
    running, waiting = (submit(stack, key, 75) for _ in range(2))
    eventually(lambda: runs(stack, running))
    name = str(stack.record(running)["worker"])
    ordered = stack.run("workers", "drain", name, "--no-wait")
    assert ordered.returncode == 0, ordered.stderr
    eventually(lambda: [each.state for each in fleet(stack.redis)] == ["draining"])
    assert worker.wait(60) == 0
    assert stack.record(running)["status"] == "COMPLETED"  # longer than MOCHI_DRAIN_SECONDS
    assert stack.record(waiting)["status"] == "QUEUED"
    assert stack.redis.keys("mochi:drain:*") == []


def test_draining_all_waits_until_they_have_ended(stack: Stack) -> None:
    both = [stack.start_worker() for _ in range(2)]
    drained = stack.run("workers", "drain", "--all")
    assert drained.returncode == 0, drained.stderr
    assert [worker.wait(5) for worker in both] == [0, 0]
    assert "Drained: " in drained.stderr


def test_a_worker_that_is_not_there_cannot_be_drained(stack: Stack) -> None:
    refused = stack.run("workers", "drain", "nobody")
    assert refused.returncode == 1
    assert "No live worker nobody. Alive: there is none." in refused.stderr
    assert stack.run("workers", "drain").returncode == 2
    assert stack.run("workers", "drain", "x", "--all").returncode == 2
    stack.broker.stop()
    away = stack.run("workers", "list")
    assert away.returncode == 1
    assert "The job broker does not answer" in away.stderr
    assert "Traceback" not in away.stderr
    stack.broker.start()


class Clients(threading.Thread):
    """Submits with an idempotency key each, and asks another gateway when one does not answer."""

    def __init__(self, stack: Stack, urls: list[str]) -> None:
        super().__init__()
        self.urls = urls
        self.accepted: dict[int, set[str]] = {}
        self.stop = threading.Event()
        self._http = stack.http()

    def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            self.accepted[number] = {self._submit(number)}
            self.accepted[number].add(self._submit(number))  # the client is not sure: once more
            number += 1
            time.sleep(0.05)

    def _submit(self, number: int) -> str:
        body = {"prompt": f"pond {number}", "steps": 10, "frames": 1}
        headers = {"Idempotency-Key": str(number)}
        while True:
            for url in list(self.urls):
                try:
                    answer = self._http.post(f"{url}/v2/mochi-1", json=body, headers=headers)
                except httpx2.HTTPError:
                    continue
                assert answer.status_code == 200, answer.text
                return str(answer.json()["request_id"])

    def result(self, request_id: str) -> dict[str, Any]:
        """The answer when the request has ended."""

        def look() -> dict[str, Any]:
            url = f"{self.urls[0]}/v2/requests/{request_id}"
            body: dict[str, Any] = self._http.get(url).json()
            return body if body["status"] in {"COMPLETED", "FAILED"} else {}

        return eventually(look)


def test_a_rolling_restart_of_gateways_and_workers_under_load_loses_nothing(stack: Stack) -> None:
    gateways = {stack.url: stack.processes[-1]}
    stack.start_gateway()
    gateways[stack.url] = stack.processes[-1]
    running = [stack.start_worker(**SECONDS) for _ in range(2)]
    clients = Clients(stack, list(gateways))
    clients.start()
    for old in running:
        new = stack.start_worker(**SECONDS)
        old.terminate()
        assert old.wait(30) == 0
        assert new.poll() is None
    for url, gateway in gateways.items():
        stack.start_gateway()
        clients.urls.append(stack.url)
        clients.urls.remove(url)
        gateway.terminate()
        assert gateway.wait(40) == 0
    clients.stop.set()
    clients.join()
    assert len(clients.accepted) > 20
    for ids in clients.accepted.values():
        (request_id,) = ids  # one request, however often it was asked for
        body = clients.result(request_id)
        assert body["status"] == "COMPLETED"
        assert "retry_count" not in body["metrics"]
    assert len(stack.outputs()) == len(clients.accepted)
