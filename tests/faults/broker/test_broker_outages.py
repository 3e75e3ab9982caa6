"""F6 to F11: the broker dies, hangs, stays away, or its memory is full."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles
from typing import Any

import httpx2
import pytest

from tests.faults.support.client import Client, events, kill_broker, paused_broker
from tests.support.stack import Stack, eventually
from worker.store import keyspace

LEASE_SECONDS = 2
STEP_SECONDS = 0.06
LONG = 75
"""Steps: four and a half seconds, more than an outage that outlasts the lease."""
SLACK_SECONDS = 1.0
"""For a machine that is busy with other tests."""
ANSWER_SECONDS = 2.0
"""Promised: a client hears of a broker that does not answer within so long."""
NEXT_START_SECONDS = 3.0
"""Promised: from the broker's return to the start of what waits."""
CLIENTS = 8

Figure = Callable[[str], None]
Times = Callable[[int, int], int]


@pytest.fixture(scope="module")
def _stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"engine": "fake", "lease_seconds": str(LEASE_SECONDS)}
    with Stack(
        tmp_path_factory.mktemp("outages"), fake_step_seconds=str(STEP_SECONDS), **settings
    ) as stack:
        stack.start_gateway()
        for _ in range(2):
            stack.start_worker()
        yield stack


@pytest.fixture
def stack(_stack: Stack) -> Iterator[Stack]:
    """A gateway and two workers, who are the same and alive after every test."""
    yield _stack
    _stack.broker.start()
    assert [worker.poll() for worker in workers_of(_stack)] == [None, None]


@pytest.fixture
def client(stack: Stack) -> Client:
    return Client(stack)


def workers_of(stack: Stack) -> list[subprocess.Popen[bytes]]:
    return stack.processes[1:3]


def encoded(stack: Stack) -> set[str]:
    """Requests whose video is made, whether or not the broker has heard of it."""
    return {
        entry["request_id"]
        for worker in workers_of(stack)
        for entry in events(stack, worker, "run.encoded")
    }


def recovered(stack: Stack) -> int:
    """How often a worker took another for dead."""
    return sum(len(events(stack, worker, "request.recovered")) for worker in workers_of(stack))


@pytest.mark.parametrize(
    "seconds", [3, *(pytest.param(seconds, marks=pytest.mark.slow) for seconds in (8, 15, 40))]
)
def test_f06_a_result_outlives_a_broker_that_is_down_for(
    stack: Stack, client: Client, figure: Figure, seconds: int
) -> None:
    runs, runs_too, waits = (client.submit(steps=20) for _ in range(3))
    for request_id in (runs, runs_too):
        client.running(request_id)
    kill_broker(stack)
    killed = time.monotonic()
    eventually(lambda: {runs, runs_too} <= encoded(stack))  # the ends fall into the outage
    time.sleep(max(0.0, killed + seconds - time.monotonic()))
    assert not stack.broker.is_alive()
    stack.broker.start()
    back = time.monotonic()
    client.assert_made_once(runs, runs_too)
    figure(f"F6: broker down {seconds} s, results in {time.monotonic() - back:.2f} s after it")
    client.assert_made_once(waits)


@pytest.mark.parametrize("seconds", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_f07_the_next_request_starts_soon_after_idle_workers_had_no_broker_for(
    stack: Stack, client: Client, figure: Figure, seconds: int
) -> None:
    kill_broker(stack)
    time.sleep(seconds)
    assert not stack.broker.is_alive()
    stack.broker.start()
    back = time.monotonic()
    request_id = client.submit()
    eventually(lambda: stack.record(request_id)["status"] != "QUEUED")
    started = time.monotonic() - back
    figure(f"F7: broker down {seconds} s while idle, next start {started:.2f} s after its return")
    assert started <= NEXT_START_SECONDS
    client.assert_made_once(request_id)


@pytest.mark.parametrize("seconds", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_f09_of_a_broker_that_hangs_clients_hear_within_two_seconds(
    stack: Stack, client: Client, figure: Figure, seconds: int
) -> None:
    done, runs = client.submit(), client.submit(steps=20)
    link = client.ended(done)["output"]
    client.running(runs)
    asked: list[tuple[str, str, int]] = [
        ("POST", "/v2/mochi-1", 502),
        ("POST", "/v1/mochi-1", 502),
        ("GET", f"/v2/requests/{runs}/status", 502),
        ("GET", f"/v2/requests/{runs}", 502),
        ("DELETE", f"/v2/requests/{done}", 502),
        ("GET", link, 502),
        ("GET", "/readyz", 503),
        ("GET", "/healthz", 200),
    ]
    assert client.http.get("/readyz").status_code == 200
    with paused_broker(stack):
        until = time.monotonic() + seconds
        waits = []
        while time.monotonic() < until:  # at first the key is remembered, later it is not
            with ThreadPoolExecutor(len(asked)) as threads:
                answers = list(threads.map(lambda each: timed(client.http, *each[:2]), asked))
            assert [answer.status_code for answer, _ in answers] == [each[2] for each in asked]
            assert "broker" in answers[0][0].json()["error"]
            waits += [waited for _, waited in answers]
    figure(f"F9: broker stopped {seconds} s, {len(waits)} answers, slowest {max(waits):.2f} s")
    assert max(waits) <= ANSWER_SECONDS + SLACK_SECONDS
    eventually(lambda: client.http.get("/readyz").status_code == 200, seconds=5)
    client.assert_made_once(runs, client.submit())


def timed(http: httpx2.Client, method: str, path: str) -> tuple[httpx2.Response, float]:
    body = {"prompt": "a pond", "steps": 10, "frames": 1} if method == "POST" else None
    started = time.monotonic()
    answer = http.request(method, path, json=body)
    return answer, time.monotonic() - started


@pytest.mark.timeout(600)
def test_f10_an_outage_longer_than_the_lease_lets_nothing_run_twice(
    stack: Stack, client: Client, times: Times
) -> None:
    """The idle worker is back before the busy one, and sees a lease that ended long ago."""
    before = recovered(stack)
    for number in range(times(2, 22)):
        request_id = client.submit(steps=LONG)
        name = client.running(request_id)
        busy, idle = sorted(workers_of(stack), key=lambda worker: f"-{worker.pid}-" not in name)
        returns = len(events(stack, idle, "broker.back"))
        if number % 2:
            with paused_broker(stack):
                time.sleep(LEASE_SECONDS + 1)
                busy.send_signal(signal.SIGSTOP)
        else:
            kill_broker(stack)
            time.sleep(LEASE_SECONDS + 1)
            busy.send_signal(signal.SIGSTOP)
            stack.broker.start()
        eventually(lambda: len(events(stack, idle, "broker.back")) > returns)
        busy.send_signal(signal.SIGCONT)
        assert request_id not in encoded(stack), "the run outlasts the outage"
        assert stack.record(request_id)["status"] == "PROCESSING"
        client.assert_made_once(request_id)
    assert recovered(stack) == before


def test_f11_a_broker_with_full_memory_takes_no_request_and_keeps_every_result(
    stack: Stack, client: Client
) -> None:
    running = [client.submit(steps=20) for _ in range(2)]
    queued = client.submit()
    for request_id in running:
        client.running(request_id)
    stack.redis.config_set("maxmemory", "1")
    try:
        refused, waited = timed(client.http, "POST", "/v2/mochi-1")
        assert refused.status_code == 502
        assert waited <= ANSWER_SECONDS
        client.assert_made_once(*running, queued)
        video = client.http.get(client.result(queued)["output"])
        assert video.headers["content-type"] == "video/mp4"
        assert len(video.content) == client.result(queued)["video"]["file_size"]
        time.sleep(2)  # idle, and refused
        assert timed(client.http, "POST", "/v2/mochi-1")[0].status_code == 502
        assert client.http.get("/readyz").json()["live_workers"] == 2
    finally:
        stack.redis.config_set("maxmemory", "0")
    client.assert_made_once(client.submit())


def requests_of(stack: Stack) -> set[str]:
    return {str(key).rpartition(":")[2] for key in stack.redis.keys(keyspace.record("*"))}


class Storm:
    """Many clients that submit at once, and note what they were told."""

    def __init__(self, client: Client, *, retries: bool) -> None:
        self.accepted: list[str] = []
        self.seconds: list[float] = []
        self.refused = 0
        self._client = client
        self._retries = retries
        self._lock = threading.Lock()

    def submit(self, number: int) -> None:
        """Once; or, with an idempotency key, until it is accepted."""
        headers = {"Idempotency-Key": f"storm-{number}"} if self._retries else {}
        body: dict[str, Any] = {"prompt": f"pond {number}", "steps": 10, "frames": 1}
        while True:
            started = time.monotonic()
            answer = self._client.http.post("/v2/mochi-1", json=body, headers=headers)
            waited = time.monotonic() - started
            with self._lock:
                self.seconds.append(waited)
                if answer.is_success:
                    self.accepted.append(answer.json()["request_id"])
                    return
                assert answer.status_code == 502, answer.text
                self.refused += 1
            if not self._retries:
                return
            time.sleep(0.05)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("retries", [False, True], ids=["once", "until-accepted"])
def test_f08_a_broker_killed_under_many_submits_loses_none_that_was_acknowledged(
    stack: Stack, client: Client, figure: Figure, times: Times, *, retries: bool
) -> None:
    submits, kills = times(200, 1000), times(1, 3)
    for worker in workers_of(stack):
        worker.send_signal(signal.SIGSTOP)
    before = requests_of(stack)
    storm = Storm(client, retries=retries)
    with ThreadPoolExecutor(CLIENTS) as threads:
        asking = threads.map(storm.submit, range(submits))
        for number in range(kills):
            eventually(lambda: len(storm.accepted) >= submits * (number + 1) // (kills + 1))
            refused = storm.refused
            kill_broker(stack)
            eventually(lambda: storm.refused > refused)
            stack.broker.start()
        list(asking)
    assert storm.refused >= kills
    kept = requests_of(stack) - before
    assert len(set(storm.accepted)) == len(storm.accepted)
    assert set(storm.accepted) <= kept
    if retries:
        assert len(storm.accepted) == submits
        assert kept == set(storm.accepted), "one request for each key"
    positions = sorted(client.status(request_id)["queue_position"] for request_id in kept)
    assert positions == list(range(1, len(kept) + 1))
    p50, p99 = quantiles(storm.seconds, n=100)[49::49]
    figure(
        f"F8 {'with retries' if retries else 'once each'}: {submits} submits, {kills} kills, "
        f"{len(storm.accepted)} acknowledged, {storm.refused} refused, {len(kept)} kept, "
        f"p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms, max {max(storm.seconds):.2f} s"
    )
    for request_id in kept - set(storm.accepted[:2]):
        assert client.http.delete(f"/v2/requests/{request_id}").status_code == 202
    for worker in workers_of(stack):
        worker.send_signal(signal.SIGCONT)
    # Perhaps not by the first attempt: a paused worker may have popped one, and then a gateway
    # queues it again.
    for request_id in storm.accepted[:2]:
        assert client.ended(request_id)["status"] == "COMPLETED"
    assert stack.redis.zcard(keyspace.WAITING) == 0
