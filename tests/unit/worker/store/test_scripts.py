"""Answers of scripts: unknown ones, and those whose fields come in another order."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import worker
from models.errors import MochiError
from tests.support.jobs import OWNER, answer_with, ask_gateway, live, params, pop, submit
from worker.billing import FREE
from worker.broker.connection import connect_gateway
from worker.errors import UnknownAnswerError
from worker.job import Status
from worker.pace import Pace, Work
from worker.store import scripts
from worker.store.fleet import cancel_all, survey
from worker.store.gateway_side import GatewayStore
from worker.store.reports.forecast import Forecast, Forecaster
from worker.store.webhooks.deliveries import replay
from worker.store.worker_side import Lease, Result, WorkerStore

LEASE = Lease("an-id", "run")

GatewayAsk = Callable[[GatewayStore], Coroutine[Any, Any, object]]
WorkerAsk = Callable[[WorkerStore], object]

GATEWAY_ASKS: list[tuple[str, str, GatewayAsk]] = [
    ("submit", "{ 'deferred', 'an-id' }", lambda it: it.submit(params(), OWNER)),
    ("submit", "{ 'accepted', 1, 2 }", lambda it: it.submit(params(), OWNER)),
    ("submit", "{ 'would_accept', 1 }", lambda it: it.submit(params(), OWNER)),
    ("submit", "{ 'accepted' }", lambda it: it.try_out(OWNER, price=FREE)),
    ("cancel", "'later'", lambda it: it.cancel("an-id", OWNER)),
]
WORKER_ASKS: list[tuple[str, str, WorkerAsk]] = [
    ("beat", "{ 'rest' }", lambda it: it.beat(live())),
    ("finish", "2", lambda it: it.complete(LEASE, Result("a.mp4", 17))),
    ("finish", "'failed'", lambda it: it.fail(LEASE, "internal", "no")),
    ("requeue", "2", lambda it: it.requeue(LEASE)),
    ("reap", "'parked'", lambda it: it.reap("an-id")),
    ("recover", "'parked'", lambda it: it.recover("an-id")),
]


@pytest.mark.parametrize(("script", "answer", "ask"), GATEWAY_ASKS)
def test_a_gateway_takes_no_answer_that_it_does_not_know(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, script: str, answer: str, ask: GatewayAsk
) -> None:
    answer_with(monkeypatch, **{script: f"return {answer}"})
    with pytest.raises(UnknownAnswerError, match=script) as error:
        ask_gateway(redis_url, ask)
    assert not isinstance(error.value, MochiError)  # those have answers of their own


@pytest.mark.parametrize(("script", "answer", "ask"), WORKER_ASKS)
def test_a_worker_takes_no_answer_that_it_does_not_know(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, script: str, answer: str, ask: WorkerAsk
) -> None:
    answer_with(monkeypatch, **{script: f"return {answer}"})
    with pytest.raises(UnknownAnswerError, match=script):
        ask(WorkerStore(redis, lease_seconds=10, retention_seconds=60))


def test_commands_take_no_answer_that_they_do_not_know(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = submit(redis_url)
    answer_with(monkeypatch, replay_webhook="return 'soon'", cancel="return 'later'")
    with pytest.raises(UnknownAnswerError, match="replay_webhook"):
        replay(redis, request_id)
    with pytest.raises(UnknownAnswerError, match="cancel"):
        cancel_all(redis, OWNER, retention_seconds=60)


def backwards(script: str) -> str:
    """The script, with the names and values that it answers in another order, and one more."""
    first_line, _, rest = scripts.source(script).partition("\n")
    return f"""{first_line}
local function forwards()
{rest}
end
local answer, reversed = forwards(), {{ 'new', 'field' }}
for index = #answer - 1, 1, -2 do
  reversed[#reversed + 1] = answer[index]
  reversed[#reversed + 1] = answer[index + 1]
end
return reversed
"""


def test_a_worker_reads_answers_by_name(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(redis_url, "a pond", seed=3)
    submit(redis_url)
    lease = Lease(str(pop(redis)), "run")
    pop(redis)
    answer_with(monkeypatch, start=backwards("start"), overdue=backwards("overdue"))
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=60)
    job = store.start(lease, "ann")
    assert job is not None
    assert (job.status, job.owner, job.attempt) == (Status.PROCESSING, OWNER, 1)
    assert (job.params.prompt, job.params.seed) == ("a pond", 3)
    assert job.queue_seconds is not None
    overdue = store.overdue()
    assert overdue is not None
    assert (overdue.expired, len(overdue.popped), overdue.missing) == ([], 1, 0)
    assert overdue.watched_seconds == 0


def test_figures_and_forecasts_are_read_by_name(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = live("ann")
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=60)
    store.beat(worker)
    submit(redis_url)
    waits = submit(redis_url)
    store.start(Lease(str(pop(redis)), "run"), "ann")
    store.note_pace(worker.engine, Work.of(params()), Pace(1.0, 2.0, 3.0))

    async def forecast() -> Forecast:
        async with connect_gateway(redis_url) as client:
            return await Forecaster(client).now()

    before = asyncio.run(forecast())
    answer_with(monkeypatch, survey=backwards("survey"), foresee=backwards("foresee"))
    figures = survey(redis)
    assert (figures.waiting, figures.running, figures.workers) == (1, 1, [worker])
    assert (figures.due_webhooks, figures.counts["submits"]) == (0, {"accepted": 2})
    after = asyncio.run(forecast())
    assert (after.paces, [*after.starts]) == (before.paces, [waits])
    assert after.starts[waits] == pytest.approx(before.starts[waits], abs=5)
    assert after.starts[waits] > 1


def test_a_running_process_needs_no_file_of_a_script(tmp_path: Path) -> None:
    """An upgrade replaces them, and only then the process calls some for the first time."""
    installed = tmp_path / "worker"
    shutil.copytree(Path(worker.__file__).parent, installed)
    loses_files = """
import shutil, sys
sys.path.insert(0, sys.argv[1])
from worker.store import scripts
assert scripts.__file__.startswith(sys.argv[1])
shutil.rmtree(sys.argv[1])
print(scripts.source("survey"), scripts.source("pop"))
"""
    command = [sys.executable, "-P", "-c", loses_files, str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed == f"{scripts.source('survey')} {scripts.source('pop')}\n"
