"""Clients that submit and poll while containers are restarted, and count what they see."""

from __future__ import annotations

import threading
import time
from collections import Counter
from types import TracebackType

import httpx2

from server.errors import MEANING

BODY = {"prompt": "A paper boat drifts down a street", "frames": 7, "steps": 10}
PAUSE_SECONDS = 0.2
CALL_SECONDS = 60.0
DOCUMENTED = {200, 202, *MEANING}


class Traffic:
    """Threads that submit requests from their start to their end.

    Attributes:
        acknowledged: the ids that the gateway has given.
        answers: how often each status came, or no answer for each reason.
    """

    def __init__(self, url: str, key: str, clients: int = 4) -> None:
        self.acknowledged: list[str] = []
        self.answers: Counter[int | str] = Counter()
        self._url = url
        self._headers = {"x-api-key": key}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._submit) for _ in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def undocumented(self) -> dict[int | str, int]:
        """Statuses that docs/api.md does not have."""
        return {
            answer: count
            for answer, count in self.answers.items()
            if isinstance(answer, int) and answer not in DOCUMENTED
        }

    def _submit(self) -> None:
        with httpx2.Client(
            base_url=self._url, headers=self._headers, timeout=CALL_SECONDS, trust_env=False
        ) as client:
            while not self._over.wait(PAUSE_SECONDS):
                try:
                    answer = client.post("/v2/mochi-1", json=BODY)
                except httpx2.TransportError as error:
                    self.answers[type(error).__name__] += 1
                else:
                    self.answers[answer.status_code] += 1
                    if answer.status_code == httpx2.codes.OK:
                        self.acknowledged.append(answer.json()["request_id"])


def ends(url: str, key: str, ids: list[str], seconds: float) -> Counter[str]:
    """How many of the requests have which end; what has none after `seconds` counts as `lost`."""
    found: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    waiting = list(ids)
    with httpx2.Client(base_url=url, headers={"x-api-key": key}, trust_env=False) as client:
        while waiting and time.monotonic() < deadline:
            waiting = [one for one in waiting if not _count(client, one, found)]
            time.sleep(PAUSE_SECONDS)
    found["lost"] += len(waiting)
    return +found


def _count(client: httpx2.Client, request_id: str, found: Counter[str]) -> bool:
    """Count the request if it has ended."""
    try:
        answer = client.get(f"/v2/requests/{request_id}/status")
    except httpx2.TransportError:
        return False
    if answer.status_code == httpx2.codes.NOT_FOUND:
        found["lost"] += 1
        return True
    status = answer.json().get("status", "")
    if status in {"COMPLETED", "FAILED"}:
        found[status] += 1
        return True
    return False
