from __future__ import annotations

import asyncio

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from tests.support.jobs import ask_gateway, params
from worker.broker.batching import Batch
from worker.errors import BrokerUnavailableError


def test_questions_of_one_moment_travel_together() -> None:
    sent: list[list[int]] = []

    async def double(numbers: list[int]) -> list[int]:
        sent.append(numbers)
        return [2 * number for number in numbers]

    async def ask() -> list[int]:
        batch = Batch(double)
        together = await asyncio.gather(*(batch.ask(number) for number in range(4)))
        return [*together, await batch.ask(9)]

    assert asyncio.run(ask()) == [0, 2, 4, 6, 18]
    assert sent == [[0, 1, 2, 3], [9]]


def test_a_refused_question_is_an_error_for_its_caller_alone() -> None:
    async def refuse_odd(numbers: list[int]) -> list[int | Exception]:
        return [ResponseError("odd") if number % 2 else number for number in numbers]

    async def ask() -> tuple[int | BaseException, int | BaseException]:
        batch: Batch[int, int] = Batch(refuse_odd)
        return await asyncio.gather(batch.ask(0), batch.ask(1), return_exceptions=True)

    fine, refused = asyncio.run(ask())
    assert fine == 0
    assert isinstance(refused, BrokerUnavailableError)


def test_a_caller_that_goes_away_takes_nothing_from_the_others() -> None:
    async def echo(numbers: list[int]) -> list[int]:
        await asyncio.sleep(0.01)
        return numbers

    async def ask() -> int:
        batch = Batch(echo)
        leaver = asyncio.create_task(batch.ask(1))
        stayer = asyncio.create_task(batch.ask(2))
        await asyncio.sleep(0)
        leaver.cancel()
        return await stayer

    assert asyncio.run(ask()) == 2


def test_a_broker_that_forgot_the_scripts_is_told_them_again(redis: Redis, redis_url: str) -> None:
    redis.script_flush()

    ids = [
        accepted.request_id
        for accepted in ask_gateway(
            redis_url,
            lambda it: asyncio.gather(*(it.submit(params(), "owner") for _ in range(3))),
        )
    ]
    assert len(set(ids)) == 3
    assert redis.zcard("mochi:waiting") == 3
    redis.script_flush()
    job = ask_gateway(redis_url, lambda it: it.find(ids[1], "owner"))
    assert job.position == 2


def test_silence_is_an_error_within_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.broker.batching.LONGEST_SECONDS", 0.01)

    async def hang(numbers: list[int]) -> list[int]:
        await asyncio.sleep(60)
        return numbers

    with pytest.raises(BrokerUnavailableError):
        asyncio.run(Batch(hang).ask(1))
