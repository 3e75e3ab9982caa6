"""Server-sent events: a client that listens hears all that one who polls would see."""

from __future__ import annotations

import io
import json
import signal
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from PIL import Image

from models.mock.scenario import SCENARIO
from server.keys.lookup import Scope
from tests.support.stack import Stack, eventually
from tests.support.wire import another_gateway, refusal, stranger
from worker.store.worker_side import Lease

UNKNOWN = "00000000-0000-4000-8000-000000000000"
LISTENERS = 40

Event = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway and, once a test has started it, a worker."""
    folder = tmp_path_factory.mktemp("events")
    with Stack(folder, engine="fake", fake_step_seconds="0.05", lease_seconds="2") as stack:
        stack.start_gateway()
        yield stack


@pytest.fixture
def worker(stack: Stack) -> None:
    if not stack.live_workers():
        stack.start_worker()


def submit(client: httpx2.Client, steps: int = 10, prompt: str = "a pond", **more: Any) -> str:
    body = {"prompt": prompt, "steps": steps, "frames": 1, **more}
    return str(client.post("/v2/mochi-1", json=body).json()["request_id"])


def events(response: httpx2.Response) -> Iterator[Event]:
    """Each as its name and its data, until the stream ends."""
    name = ""
    for line in response.iter_lines():
        kind, _, value = line.partition(": ")
        if kind == "event":
            name = value
        elif kind == "data":
            yield name, json.loads(value)


def listen(client: httpx2.Client, request_id: str) -> list[Event]:
    """All events of a request."""
    with client.stream("GET", f"/v2/requests/{request_id}/events") as response:
        assert response.status_code == 200
        return list(events(response))


# No worker runs yet


def test_another_key_gets_no_events_of_a_request(stack: Stack) -> None:
    client, other = stack.http(), stack.http()
    writer = stack.http(stack.key(scopes=frozenset({Scope.GENERATE})))
    request_id = submit(client)
    path = f"/v2/requests/{request_id}/events"
    assert refusal(other.get(path), 404) == f"Request {request_id} not found"
    assert refusal(client.get(f"/v2/requests/{UNKNOWN}/events"), 404)
    assert "scope `read`" in refusal(writer.get(path), 403)
    with stranger(stack) as outsider:
        assert refusal(outsider.get(path), 401)
    assert client.delete(f"/v2/requests/{request_id}").status_code == 202


def test_the_link_of_a_status_needs_no_key_and_opens_the_events_of_one_request(
    stack: Stack,
) -> None:
    client = stack.http()
    one, other = (
        client.get(f"/v2/requests/{submit(client)}/status").json()["events_url"] for _ in range(2)
    )
    with httpx2.stream("GET", one) as response:
        assert response.status_code == 200
        assert next(events(response))[0] == "status"
    for url in (one, other):
        client.delete(url.rpartition("/")[0])
    path, _, signature = one.partition("?")
    assert refusal(httpx2.get(f"{other.partition('?')[0]}?{signature}"), 404)
    assert refusal(httpx2.get(path), 401)


def test_an_answer_of_events_is_neither_kept_nor_held_back_on_its_way(stack: Stack) -> None:
    client = stack.http()
    request_id = submit(client)
    with client.stream("GET", f"/v2/requests/{request_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers.get_list("cache-control") == ["no-store"]
        assert response.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in response.headers
        name, body = next(events(response))
    assert (name, body["status"]) == ("status", "QUEUED")
    assert body == client.get(f"/v2/requests/{request_id}/status").json()
    assert client.delete(f"/v2/requests/{request_id}").status_code == 202


def test_many_listeners_share_one_look_and_are_let_go_when_they_hang_up(stack: Stack) -> None:
    client = stack.http()
    request_id = submit(client)
    before = len(stack.redis.client_list())
    with ExitStack() as open_streams:
        for _ in range(LISTENERS):
            stream = client.stream("GET", f"/v2/requests/{request_id}/events")
            assert open_streams.enter_context(stream).status_code == 200
        looks = looks_made(stack)
        time.sleep(2)
        assert 2 <= looks_made(stack) - looks < LISTENERS / 4
        assert len(stack.redis.client_list()) - before < 5

    def is_quiet() -> bool:
        looks = looks_made(stack)
        time.sleep(1.5)
        return looks_made(stack) == looks

    eventually(is_quiet)
    assert client.delete(f"/v2/requests/{request_id}").status_code == 202
    assert "http.bug" not in stack.logs()


def looks_made(stack: Stack) -> int:
    """At one request each: a look asks for its place among those that wait."""
    return int(stack.redis.info("commandstats")["cmdstat_zrank"]["calls"])


def test_who_waits_hears_of_the_place_in_the_queue_and_of_a_cancel(stack: Stack) -> None:
    client = stack.http()
    before, waiting = submit(client), submit(client)
    with client.stream("GET", f"/v2/requests/{waiting}/events") as response:
        heard = events(response)
        assert next(heard)[1]["queue_position"] == 2
        client.delete(f"/v2/requests/{before}")
        name, body = next(heard)
        assert (name, body["queue_position"]) == ("progress", 1)
        client.delete(f"/v2/requests/{waiting}")
        ((name, body),) = heard
    assert (name, body["status"], body["error_code"]) == ("status", "FAILED", "cancelled")
    assert body == client.get(f"/v2/requests/{waiting}").json()


def test_another_attempt_is_a_change_of_state(stack: Stack) -> None:
    client = stack.http()
    request_id = submit(client)
    with client.stream("GET", f"/v2/requests/{request_id}/events") as response:
        heard = events(response)
        next(heard)
        for attempt in (1, 2):
            lease = Lease(request_id, f"run {attempt}")
            assert stack.store.start(lease, "ann")
            name, body = next(heard)
            assert (name, body["status"], body["attempt"]) == ("status", "PROCESSING", attempt)
            if attempt == 1:
                stack.redis.zadd("mochi:leases", {request_id: 1})
                stack.store.reap(request_id)
                assert next(heard)[1]["status"] == "QUEUED"
        stack.store.fail(lease, "internal", "no")
        assert [name for name, _ in heard] == ["status"]


def test_a_gateway_that_stops_lets_its_listeners_go_at_once(stack: Stack) -> None:
    client = stack.http()
    request_id = submit(client)
    url = another_gateway(stack, drain_seconds="60")
    with client.stream("GET", f"{url}/v2/requests/{request_id}/events") as response:
        heard = events(response)
        next(heard)
        stack.processes[-1].send_signal(signal.SIGTERM)
        assert list(heard) == []
    assert stack.processes[-1].wait(20) == 0
    assert client.delete(f"/v2/requests/{request_id}").status_code == 202


# From here on one does


@pytest.mark.usefixtures("worker")
def test_a_request_is_followed_from_its_start_to_its_result(stack: Stack) -> None:
    client = stack.http()
    request_id = submit(client, steps=60)
    heard = listen(client, request_id)
    names = [name for name, _ in heard]
    assert names[0] == "status"
    assert names[-1] == "output"
    assert set(names[1:-1]) <= {"status", "progress", "preview"}
    steps = [body["step"] for _, body in heard[:-1]]
    assert steps == sorted(steps)
    assert len({step for step in steps if 0 < step < 60}) >= 3
    result = heard[-1][1]
    asked = client.get(f"/v2/requests/{request_id}").json()
    assert result == asked
    assert client.get(result["output"]).headers["content-type"] == "video/mp4"


@pytest.mark.usefixtures("worker")
def test_a_video_is_seen_on_its_way_and_no_trace_of_that_is_left(stack: Stack) -> None:
    client = stack.http()
    request_id = submit(client, steps=40, **{SCENARIO: "slow:3"})
    heard = listen(client, request_id)
    previews = [body for _, body in heard if "preview" in body]
    pictures = {preview["preview"] for preview in previews}
    assert len(pictures) >= 2  # one may come twice: it is fetched a moment after it was told of
    for picture in pictures:
        kind, _, data = picture.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(b64decode(data))).size == (212, 120)
    assert all("preview" in body for name, body in heard if name == "preview")
    assert not any("preview" in body for name, body in heard if name in {"progress", "output"})
    assert {"stage", "step"} <= set(previews[-1])
    assert stack.redis.keys("mochi:preview:*") == []
    assert "preview" not in stack.record(request_id)


@pytest.mark.usefixtures("worker")
def test_who_polls_or_comes_late_sees_it_too(stack: Stack) -> None:
    client = stack.http()
    request_id = submit(client, steps=75, **{SCENARIO: "slow:40"})
    path = f"/v2/requests/{request_id}/status"
    wanted = {"preview": "true"}
    eventually(lambda: client.get(path, params=wanted).json().get("preview"))
    assert "preview" not in client.get(path).json()
    with client.stream("GET", f"/v2/requests/{request_id}/events") as response:
        name, body = next(events(response))
    assert name == "status"
    assert body["preview"].startswith("data:image/jpeg;base64,")
    assert refusal(client.get(path, params={"preview": "yes"}), 400).startswith("`preview` must be")
    assert client.delete(f"/v2/requests/{request_id}").status_code == 202


@pytest.mark.usefixtures("worker")
def test_the_events_of_a_link_do_not_show_the_balance_of_the_key(stack: Stack) -> None:
    client = stack.http()
    request_id = submit(client, steps=40)
    link = client.get(f"/v2/requests/{request_id}/status").json()["events_url"]
    with httpx2.stream("GET", link, timeout=60) as response:
        metrics = list(events(response))[-1][1]["metrics"]
    own = listen(client, request_id)[-1][1]["metrics"]
    assert own.pop("remaining_credits") > 0
    assert metrics == own


@pytest.mark.usefixtures("worker")
def test_who_comes_after_the_end_hears_the_end_and_nothing_else(stack: Stack) -> None:
    client = stack.http()
    done, failed = submit(client), submit(client, steps=10, **{SCENARIO: "fail"})
    for request_id, (name, status) in {
        done: ("output", "COMPLETED"),
        failed: ("status", "FAILED"),
    }.items():
        listen(client, request_id)
        ((heard, body),) = listen(client, request_id)
        assert (heard, body["status"]) == (name, status)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("scenario", ["slow:0.1", "fail"])
def test_a_client_that_has_the_last_event_is_told_not_to_reconnect(
    stack: Stack, scenario: str
) -> None:
    client = stack.http()
    request_id = submit(client, 10, "a pond", **{SCENARIO: scenario})
    path = f"/v2/requests/{request_id}/events"
    heard = client.get(path).text
    ids = [line.removeprefix("id: ") for line in heard.splitlines() if line.startswith("id: ")]
    assert len(ids) == heard.count("event: ")
    assert ids[-1] not in ids[:-1]
    again, lost = (client.get(path, headers={"last-event-id": one}) for one in (ids[-1], ids[0]))
    assert (again.status_code, again.content) == (204, b"")
    assert f"id: {ids[-1]}" in lost.text
    refusal(stack.http().get(path, headers={"last-event-id": ids[-1]}), 404)
