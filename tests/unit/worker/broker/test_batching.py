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


def test_questions_that_come_during_a_round_trip_travel_together_after_it() -> None:
    sent: list[list[int]] = []

    async def ask() -> None:
        arrived = asyncio.Event()

        async def echo(numbers: list[int]) -> list[int]:
            sent.append(numbers)
            await arrived.wait()
            return numbers

        batch = Batch(echo)
        questions = [asyncio.create_task(batch.ask(0))]
        for number in range(1, 4):
            await asyncio.sleep(0)
            questions.append(asyncio.create_task(batch.ask(number)))
        await asyncio.sleep(0)
        arrived.set()
        assert await asyncio.gather(*questions) == [0, 1, 2, 3]

    asyncio.run(ask())
    assert sent[0][0] == 0
    assert len(sent) == 2


def test_a_slow_round_trip_does_not_hold_the_questions_after_it() -> None:
    async def ask() -> int:
        async def hang_on_zero(numbers: list[int]) -> list[int]:
            if 0 in numbers:
                await asyncio.sleep(60)
            return numbers

        batch = Batch(hang_on_zero)
        slow = asyncio.create_task(batch.ask(0))
        await asyncio.sleep(0.001)
        answer = await batch.ask(1)
        slow.cancel()
        return answer

    assert asyncio.run(asyncio.wait_for(ask(), timeout=30)) == 1


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


def test_nothing_is_sent_for_callers_that_have_all_gone_away() -> None:
    """Nor as the event loop ends, which would leave a task that is never finished."""
    sent: list[list[int]] = []
    callers: list[asyncio.Task[int]] = []

    async def hang(numbers: list[int]) -> list[int]:
        sent.append(numbers)
        await asyncio.sleep(60)
        return numbers

    async def leave() -> None:
        batch = Batch(hang)
        callers.append(asyncio.create_task(batch.ask(1)))
        await asyncio.sleep(0.01)
        callers.append(asyncio.create_task(batch.ask(2)))
        await asyncio.sleep(0)

    # At its end all tasks are cancelled: the callers, and the round trip, whose end begins another.
    asyncio.run(leave())
    assert sent == [[1]]


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
