"""The accounting of the chaos run, on histories made by hand: it must see what it is there for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.accounting import Account, Why, account
from tests.chaos.history import Event, What, events_of

LEASE = 10.0

VIDEO = '{"metrics": {}, "seed": 1}'


def accounted(*events: Event) -> Account:
    return account(events, lease_seconds=LEASE)


def accepted(request_id: str = "r", at: float = 0.0, submit: str = "1") -> Event:
    return Event(at, What.ACKNOWLEDGED, request_id, detail=submit)


def started(at: float, worker: str, request_id: str = "r", attempt: int = 1) -> Event:
    return Event(at, What.STARTED, request_id, worker, detail=str(attempt))


def ended(at: float, worker: str, what: What = What.COMPLETED, request_id: str = "r") -> Event:
    return Event(at, what, request_id, worker)


def seen(at: float, detail: str = "completed", body: str = "", request_id: str = "r") -> Event:
    return Event(at, What.ANSWERED, request_id, detail=detail, body=body)


def fault(at: float, what: What, worker: str = "") -> Event:
    return Event(at, what, worker=worker)


def one_run_after_another(*between: Event, again: float) -> Account:
    """A request that runs on ann at 10, and on bob later, who completes it."""
    return accounted(
        accepted(),
        started(10, "ann"),
        *between,
        started(again, "bob"),
        ended(again + 1, "bob"),
        seen(again + 2),
    )


def test_a_history_in_which_nothing_happens_twice_is_clean() -> None:
    kept = accounted(
        accepted("r", submit="1"),
        accepted("s", submit="2"),
        started(1, "ann", "r"),
        started(1, "bob", "s"),
        ended(2, "ann", request_id="r"),
        ended(2, "bob", What.FAILED, "s"),
        seen(3, request_id="r", body=VIDEO),
        seen(4, request_id="r", body=VIDEO),
        seen(3, "out_of_memory", request_id="s"),
    )
    assert kept.is_clean
    assert (kept.acknowledged, kept.terminal) == (2, 2)
    assert (kept.completed, kept.failed) == (1, {"out_of_memory": 1})
    assert (kept.runs, kept.answers, kept.reruns) == ({1: 2}, {1: 2}, {})


def test_an_acknowledged_request_without_an_end_is_lost() -> None:
    kept = accounted(accepted("r"), started(1, "ann"), ended(2, "ann"), accepted("s", submit="2"))
    assert kept.lost == ["r", "s"]
    assert kept.terminal == 0
    assert not kept.is_clean


def test_a_run_beside_one_that_goes_on_is_duplicated() -> None:
    kept = one_run_after_another(again=30)
    assert len(kept.duplicated) == 1
    assert kept.duplicated[0].startswith("r: a run on bob at 30.000, after one on ann at 10.000")
    assert not kept.is_clean


@pytest.mark.parametrize("end", [What.COMPLETED, What.FAILED])
def test_a_run_after_one_that_has_ended_is_duplicated_even_if_its_worker_was_killed_later(
    end: What,
) -> None:
    kept = one_run_after_another(ended(11, "ann", end), fault(12, What.KILLED, "ann"), again=30)
    assert len(kept.duplicated) == 1


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (fault(11, What.KILLED, "ann"), Why.KILLED),
        (fault(11, What.EXITED, "ann"), Why.EXITED),
        (ended(11, "ann", What.REQUEUED), Why.REQUEUED),
        (ended(11, "ann", What.LEFT_BEHIND), Why.LEFT_BEHIND),
    ],
)
def test_a_run_is_explained_by_what_became_of_the_worker_before(event: Event, why: Why) -> None:
    kept = one_run_after_another(event, again=12)
    assert kept.is_clean
    assert kept.reruns == {why: 1}
    assert kept.runs == {2: 1}


def test_a_worker_that_was_paused_in_the_midst_of_its_start_says_so_late() -> None:
    """Ann took it at 10, Bob after her lease, and Cid after Bob's death."""
    kept = accounted(
        accepted(),
        fault(10, What.PAUSED, "ann"),
        started(21, "bob", attempt=2),
        fault(22, What.KILLED, "bob"),
        fault(24, What.RESUMED, "ann"),
        started(24.1, "ann", attempt=1),
        ended(24.6, "ann", What.LOST),
        started(33, "cid", attempt=3),
        ended(34, "cid", What.COMPLETED),
    )
    assert kept.duplicated == []
    assert kept.reruns == {Why.PAUSED: 1, Why.KILLED: 1}


def test_a_worker_that_is_killed_after_the_next_run_began_explains_nothing() -> None:
    kept = one_run_after_another(fault(13, What.KILLED, "ann"), again=12)
    assert len(kept.duplicated) == 1


def test_another_worker_that_was_killed_explains_nothing() -> None:
    kept = one_run_after_another(fault(11, What.KILLED, "eve"), again=12)
    assert len(kept.duplicated) == 1


def test_a_worker_that_had_lost_its_lease_before_it_was_killed_was_alive() -> None:
    lost = ended(11, "ann", What.LOST)
    assert len(one_run_after_another(lost, fault(12, What.KILLED, "ann"), again=13).duplicated) == 1


def zombie(again: float, resumed: float = 40) -> Account:
    """Ann is paused at 11 and finds, when she is resumed, that the request is not hers."""
    return one_run_after_another(
        fault(11, What.PAUSED, "ann"),
        fault(resumed, What.RESUMED, "ann"),
        ended(resumed + 1, "ann", What.LATE),
        again=again,
    )


def test_a_worker_that_was_paused_for_a_lease_explains_a_run() -> None:
    kept = zombie(again=21)
    assert kept.is_clean
    assert kept.reruns == {Why.PAUSED: 1}


def test_a_worker_that_was_paused_for_less_than_a_lease_does_not() -> None:
    assert len(zombie(again=19).duplicated) == 1
    assert len(zombie(again=30, resumed=15).duplicated) == 1


def test_a_pause_before_the_run_began_does_not_count() -> None:
    kept = one_run_after_another(
        fault(0, What.PAUSED, "ann"), fault(11, What.RESUMED, "ann"), again=18
    )
    assert len(kept.duplicated) == 1


def test_a_broker_that_was_away_for_a_lease_explains_a_run() -> None:
    away = fault(11, What.BROKER_DOWN), fault(21, What.BROKER_UP)
    assert one_run_after_another(*away, again=22).reruns == {Why.OUTAGE: 1}
    shortly = fault(11, What.BROKER_DOWN), fault(14, What.BROKER_UP)
    assert len(one_run_after_another(*shortly, again=30).duplicated) == 1


def test_a_pause_that_begins_as_the_broker_comes_back_goes_on_with_its_silence() -> None:
    kept = one_run_after_another(
        fault(11, What.BROKER_DOWN),
        fault(14, What.BROKER_UP),
        fault(14.3, What.PAUSED, "ann"),
        again=21,
    )
    assert kept.reruns == {Why.PAUSED: 1}


def test_two_different_ends_of_one_request_are_a_violation() -> None:
    kept = accounted(accepted(), seen(1, body=VIDEO), seen(2, "worker_lost"))
    assert kept.answers == {2: 1}
    assert kept.violations == [f"r: clients saw 2 ends: completed {VIDEO} and worker_lost "]
    assert not kept.is_clean


def test_two_different_videos_of_one_request_are_a_violation() -> None:
    kept = accounted(accepted(), seen(1, body=VIDEO), seen(2, body='{"metrics": {}, "seed": 2}'))
    assert (kept.answers, len(kept.violations)) == ({2: 1}, 1)


def test_two_runs_that_complete_one_request_are_a_violation() -> None:
    kept = one_run_after_another(
        fault(11, What.PAUSED, "ann"),
        fault(40, What.RESUMED, "ann"),
        ended(41, "ann", What.COMPLETED),
        again=22,
    )
    assert kept.violations == ["r: completed by 2 runs"]


def test_a_run_that_completes_a_cached_request_is_a_violation() -> None:
    def of(metrics: str) -> list[str]:
        body = f'{{"metrics": {metrics}}}'
        return accounted(accepted(), started(1, "a"), ended(2, "a"), seen(3, body=body)).violations

    assert of('{"cached": true, "inference_time": 0.0}') == ["r: cached, and completed by a run"]
    assert of('{"cached": true, "inference_time": 0.1}') == []  # it was given another fps
    assert of('{"inference_time": 3.0}') == []


def test_one_id_for_two_submits_is_a_violation() -> None:
    again = accepted(at=1, submit="1")
    assert accounted(accepted(submit="1"), again, seen(2)).is_clean
    kept = accounted(accepted(submit="1"), accepted(submit="2"), seen(2))
    assert kept.violations == ["r: the answer to 2 submits"]


def test_two_ids_for_one_submit_are_a_violation() -> None:
    kept = accounted(
        accepted("r", submit="1"), accepted("s", submit="1"), seen(2), seen(2, request_id="s")
    )
    assert kept.violations == ["r and s: made by one submit that was repeated with its key"]


def test_a_video_that_cannot_be_had_is_a_violation() -> None:
    damaged = Event(2, What.DAMAGED, "r", detail="no video")
    assert accounted(accepted(), seen(1), damaged).violations == ["r: no video"]


def test_a_fourth_attempt_is_a_violation_and_a_run_that_was_requeued_is_none() -> None:
    def attempts(last: Event) -> list[str]:
        killed = [
            event
            for number in range(3)
            for event in (
                started(number * 20, f"w{number}"),
                fault(number * 20 + 1, What.KILLED, f"w{number}"),
            )
        ]
        return accounted(
            accepted(), *killed, started(60, "ann"), last, started(80, "bob"), seen(90)
        ).violations

    assert attempts(fault(61, What.KILLED, "ann")) == ["r: 5 attempts"]
    assert attempts(ended(61, "ann", What.REQUEUED)) == ["r: 4 attempts"]


def test_a_death_is_detected_when_its_request_waits_again_however_long_it_then_waits() -> None:
    kept = accounted(
        accepted("r"),
        Event(1, What.RECOVERED, "r", "eve", detail="requeued"),  # of a pop that was lost before
        started(10, "ann", "r"),
        fault(11, What.KILLED, "ann"),
        Event(21, What.RECOVERED, "r", "eve", detail="requeued"),
        started(50, "bob", "r"),
        seen(60, request_id="r"),
    )
    assert kept.detection == [10]


def test_a_repair_that_no_log_tells_of_counts_by_the_next_run_or_the_end_for_that_reason() -> None:
    kept = accounted(
        accepted("r"),
        started(10, "ann", "r"),
        fault(11, What.KILLED, "ann"),
        started(23, "bob", "r"),
        fault(24, What.KILLED, "bob"),
        Event(39, What.RECOVERED, "r", "eve", detail="failed"),
        seen(40, "worker_lost", request_id="r"),
    )
    assert kept.detection == [12, 15]
    assert kept.failed == {"worker_lost": 1}


def test_a_worker_that_is_killed_after_its_run_leaves_nothing_to_detect() -> None:
    kept = accounted(
        accepted(), started(1, "ann"), ended(2, "ann"), fault(3, What.KILLED, "ann"), seen(4)
    )
    assert kept.detection == []


def test_a_log_is_read_as_far_as_it_was_written(tmp_path: Path) -> None:
    log = tmp_path / "worker-007.log"
    line = {"event": "run.started", "request_id": "r", "timestamp": "2026-01-02T03:04:05.250000Z"}
    other = {"event": "worker.ready", "timestamp": "2026-01-02T03:04:05Z"}
    log.write_text(f"{json.dumps(other)}\nnot JSON\n{json.dumps(line)}\n" + json.dumps(line)[:30])
    assert list(events_of(log)) == [Event(1767323045.25, What.STARTED, "r", "worker-007")]
