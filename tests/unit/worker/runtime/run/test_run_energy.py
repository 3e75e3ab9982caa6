"""The energy of a run, however it ends: in its result, in the key's usage and in the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from models.mock.card_speed import MockSpeed
from models.mock.fake_engine import FakeEngine
from server.keys.times import broker_time
from tests.support.jobs import OWNER, find, pop, submit
from tests.unit.worker.support.desk import Desk, Hooked
from worker.job import Job, Status
from worker.process.shutdown import Stop
from worker.runtime.run import RunEnergy
from worker.store import keyspace
from worker.store.fleet import survey
from worker.store.reports.usage import Period, read_usages
from worker.store.worker_side import Recovery


class Cards:
    """Cards whose counter a test sets."""

    def __init__(self, joules: float | None = 5000.0) -> None:
        self.joules = joules

    def __call__(self) -> float | None:
        return self.joules

    def use(self, joules: float) -> None:
        assert self.joules is not None
        self.joules += joules


def using(cards: Cards, joules: float) -> Callable[[int], None]:
    """What a step does."""
    return lambda _step: cards.use(joules)


@pytest.fixture
def cards(desk: Desk) -> Cards:
    desk.energy = cards = Cards()
    return cards


def counted(desk: Desk) -> tuple[float | None, float | None]:
    """Joules of the key's usage and of the metrics; None where there is no figure."""
    today = broker_time(desk.redis).date()
    days = Period.latest(2, today)  # a test may run at midnight
    used = [each.energy_joules for each in read_usages(desk.redis, days) if each.owner == OWNER]
    joules = [each for each in used if each is not None]
    total = survey(desk.redis).counts.get("energy_mj", {}).get("")
    return sum(joules) if joules else None, None if total is None else total / 1000


def test_a_completed_run_tells_what_its_cards_used(desk: Desk, cards: Cards) -> None:
    job = desk.run(Hooked(using(cards, 70.5), lambda: cards.use(0.25)))
    assert job.energy_mj == 705_250
    assert counted(desk) == (705.25, 705.25)


@pytest.mark.parametrize(
    ("scenario", "code"), [("fail", "internal"), ("out_of_memory", "out_of_memory")]
)
def test_the_energy_of_a_failed_run_is_used_and_in_no_result(
    desk: Desk, cards: Cards, scenario: str, code: str
) -> None:
    job = desk.run(Hooked(using(cards, 10)), scenario)
    assert (job.error_code, job.energy_mj) == (code, None)
    joules, total = counted(desk)
    assert joules == total
    assert joules is not None
    assert 0 < joules <= 100


def test_a_run_that_is_cancelled_as_it_completes_has_used_energy_too(
    desk: Desk, cards: Cards
) -> None:
    def cancel() -> None:
        (request_id,) = desk.redis.zrange(keyspace.LEASES, 0, -1)
        desk.redis.hset(keyspace.record(str(request_id)), "cancelled", "no")

    job = desk.run(Hooked(using(cards, 2), cancel))
    assert (job.error_code, job.energy_mj) == ("cancelled", None)
    assert counted(desk) == (20, 20)


def test_a_result_has_the_energy_of_its_own_run_and_the_usage_that_of_all(
    desk: Desk, cards: Cards
) -> None:
    def stop_at(step: int) -> None:
        cards.use(1)
        if step == 4:
            desk.stop.grace_seconds = 0
            desk.stop.ask()

    waits = desk.run(Hooked(stop_at))
    assert (waits.status, waits.energy_mj) == (Status.QUEUED, None)
    assert counted(desk) == (4, 4)
    desk.stop = Stop()
    job = rerun(desk, waits, Hooked(using(cards, 10)))
    assert job.energy_mj == 100_000
    assert counted(desk) == (104, 104)


def rerun(desk: Desk, waits: Job, engine: Hooked) -> Job:
    assert pop(desk.redis) == waits.request_id
    desk.runner(engine).run(waits.request_id)
    return find(desk.url, waits.request_id)


def test_a_heartbeat_that_requeues_counts_the_latest_reading_and_asks_no_driver(
    desk: Desk, cards: Cards
) -> None:
    def stop_at(step: int) -> None:
        cards.use(1)
        run = desk.heartbeat.current_run
        assert run
        if step == 3:
            run.energy.read()
        if step == 5:
            desk.stop.grace_seconds = 0
            desk.stop.ask()
            cards.joules = None  # the driver does not answer any more
            desk.heartbeat._beat()

    assert desk.run(Hooked(stop_at)).status is Status.QUEUED
    assert counted(desk) == (3, 3)  # once: the run itself comes too late


def test_a_run_that_has_lost_its_lease_counts_nothing(desk: Desk, cards: Cards) -> None:
    def die(step: int) -> None:
        cards.use(1)
        if step == 2:
            assert desk.take_away() is Recovery.REQUEUED
            desk.heartbeat._beat()

    assert desk.run(Hooked(die)).status is Status.QUEUED
    assert counted(desk) == (None, None)


def ends_silent(cards: Cards) -> Callable[[], None]:
    def end() -> None:
        cards.joules = None

    return end


def test_cards_that_do_not_count_fail_no_run_and_leave_no_figure(desk: Desk, cards: Cards) -> None:
    cards.joules = None
    job = desk.run(Hooked())
    assert (job.status, job.energy_mj) == (Status.COMPLETED, None)
    cards.joules = 1.0
    job = desk.run(Hooked(at_end=ends_silent(cards)))
    assert (job.status, job.energy_mj) == (Status.COMPLETED, None)
    desk.energy = None
    job = desk.run(Hooked())
    assert (job.status, job.energy_mj) == (Status.COMPLETED, None)
    assert counted(desk) == (None, None)
    assert not [name for name in desk.redis.hgetall(keyspace.METRICS) if "energy" in name]


def test_a_counter_that_began_anew_is_not_read() -> None:
    values: Iterator[float] = iter([1000.0, 5.0])
    energy = RunEnergy(lambda: next(values))
    with energy.counted():
        pass
    assert energy.joules is None


def test_a_simulated_card_uses_its_power_for_each_step(desk: Desk) -> None:
    desk.speed = MockSpeed.parse("4090/9999")
    job = desk.run(FakeEngine(0))
    step = desk.speed.step_joules(job.params)
    assert step
    assert job.energy_mj == round(1000 * sum([step] * job.params.steps))
    assert [pytest.approx(10 * step)] * 2 == [*counted(desk)]


def test_a_mock_without_a_card_uses_no_energy(desk: Desk) -> None:
    assert desk.run(FakeEngine(0)).energy_mj is None
    assert submit(desk.url)
    assert counted(desk) == (None, None)
