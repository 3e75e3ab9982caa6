"""A client of a stack with one key, and what may happen to the stack's broker."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from models.mock.scenario import SCENARIO
from tests.support.stack import Stack, eventually


class Client:
    """Asks for small videos, and for what became of them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.key = stack.key()
        self.http = stack.http(self.key)

    @property
    def owner(self) -> str:
        """The id of its key."""
        return self.stack.owner(self.key)

    def submit(
        self, scenario: str = "", *, steps: int = 10, key: str = "", draft_steps: int | None = None
    ) -> str:
        """The id of a new request, with a mock scenario and an idempotency key if given."""
        headers = {"Idempotency-Key": key, SCENARIO: scenario}
        draft = {} if draft_steps is None else {"draft_steps": draft_steps}
        answer = self.http.post(
            "/v2/mochi-1",
            json={"prompt": "a pond", "steps": steps, "frames": 1, **draft},
            headers={name: value for name, value in headers.items() if value},
        )
        assert answer.is_success, answer.text
        return str(answer.json()["request_id"])

    def status(self, request_id: str) -> dict[str, Any]:
        """What a poll tells."""
        body: dict[str, Any] = self.http.get(f"/v2/requests/{request_id}/status").json()
        return body

    def result(self, request_id: str) -> dict[str, Any]:
        """The body when the request has ended, and nothing before."""
        body: dict[str, Any] = self.http.get(f"/v2/requests/{request_id}").json()
        return body if body.get("status") in {"COMPLETED", "FAILED"} else {}

    def ended(self, request_id: str) -> dict[str, Any]:
        """The body, however long it takes."""
        return eventually(lambda: self.result(request_id))

    def running(self, request_id: str, *, step: int = 2) -> str:
        """The worker that runs it, once it has come as far as `step`."""
        record = eventually(lambda: self._record_at(request_id, step))
        return str(record["worker"])

    def assert_made_once(self, *request_ids: str, runs: int = 1) -> None:
        """Each is COMPLETED by its first attempt, there is one file for each, and all know it.

        Args:
            request_ids: of this client.
            runs: how often each was begun; those that were requeued do not count as attempts.
        """
        for request_id in request_ids:
            body = self.ended(request_id)
            assert (body["status"], body["metrics"].get("retry_count")) == ("COMPLETED", None)
            assert self.stack.record(request_id)["attempt"] == "1"
            eventually(lambda: self._told("run.completed", request_id) == 1, seconds=10)
            assert self._told("run.started", request_id) == runs
            files = [name for name in self.stack.outputs() if request_id in name]
            assert files == [self.stack.record(request_id)["file_name"]]

    def _told(self, event: str, request_id: str) -> int:
        """How often the workers' logs tell it."""
        return sum(
            entry["request_id"] == request_id
            for process in self.stack.processes
            for entry in events(self.stack, process, event)
        )

    def _record_at(self, request_id: str, step: int) -> dict[str, Any]:
        record = self.stack.record(request_id)
        return record if int(record.get("step", 0)) >= step else {}


def events(stack: Stack, process: subprocess.Popen[bytes], event: str) -> list[dict[str, Any]]:
    """The lines of a process's log that tell of this event."""
    lines = (line for line in stack.log_of(process).splitlines() if line.startswith("{"))
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def broker_process(stack: Stack) -> psutil.Process:
    """The Valkey of the stack, which must answer."""
    return psutil.Process(stack.redis.info("server")["process_id"])


def kill_broker(stack: Stack) -> None:
    """With SIGKILL. It is gone when this returns."""
    broker_process(stack).kill()
    eventually(lambda: not stack.broker.is_alive())


@contextmanager
def paused_broker(stack: Stack) -> Iterator[None]:
    """Within it, the broker takes connections and answers nothing."""
    process = broker_process(stack)
    process.suspend()
    try:
        yield
    finally:
        process.resume()
