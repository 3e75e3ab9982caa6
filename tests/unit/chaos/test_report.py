"""What the chaos run says in the end, for an experiment whose outcome is made by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import command
from tests.chaos.accounting import account
from tests.chaos.books import Books
from tests.chaos.faults import Kind
from tests.chaos.history import Event, What
from tests.chaos.report import Plan, Report, broken_promises, table

OWED = Books.of({"granted": "1000000", "balance": "0", "reserved": "1000000"}, [], {})
PLAN = Plan(seconds=60, seed=1, jobs=1, workers=3, lease_seconds=10)
UPGRADE = {"plan": replace(PLAN, upgrade_from="v0.1.0")}
ACCEPTED = Event(0, What.ACKNOWLEDGED, "r", detail="1")
ENDED = Event(1, What.ANSWERED, "r", detail="completed")


def report(*history: Event, **others: Any) -> Report:
    nothing_else: dict[str, Any] = {
        "plan": PLAN, "faults": {Kind.BROKER: 2}, "quiet_seconds": 1.0, "errors": {}, "replayed": 0,
        "gave_up": 0, "unseen": 0, "files_left": [], "files_missing": [], "died": [], "stuck": [],
        "logged_errors": {}, "books": {},
    }  # fmt: skip
    return Report(account=account(history, lease_seconds=10), **nothing_else | others)


def run(monkeypatch: pytest.MonkeyPatch, outcome: Report, output: Path | None = None) -> bool:
    monkeypatch.setattr(command, "experiment", lambda *_: outcome)
    return command.run(PLAN, "", output)


def test_kept_promises_leave_no_folder_and_give_all_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    output = tmp_path / "chaos.json"
    assert run(monkeypatch, report(ACCEPTED, ENDED), output)
    assert list(tmp_path.iterdir()) == [output]
    figures = json.loads(output.read_text())
    assert (figures["is_clean"], figures["terminal"], figures["faults"]) == (
        True, 1, {"broker killed": 2},
    )  # fmt: skip
    said = capsys.readouterr()
    assert "acknowledged" in said.out
    assert said.err == ""


def test_a_broken_promise_is_told_and_its_folder_is_kept_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert not run(monkeypatch, report(ACCEPTED))
    (folder,) = tmp_path.iterdir()
    said = capsys.readouterr().err
    assert "lost: r was acknowledged and has no end" in said
    assert str(folder) in said
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({"files_missing": ["a.mp4"]}, "a.mp4 belongs to a completed request and is not there"),
        (UPGRADE | {"errors": {"ReadError": 1, "503": 2}}, "2 answers with status 503"),
        (UPGRADE | {"deliveries": {0: 1, 1: 7}}, "1 requests with 0 webhook deliveries"),
        (UPGRADE | {"errors": {"400 lora": 1}}, "1 answers with status 400 lora"),
        ({"forgotten": ["mochi:twins:a"]}, "mochi:twins:a never expires"),
        ({"unended": ["s"]}, "s waits or runs still"),
        ({"wrong_costs": ["a hit cost 1"]}, "a hit cost 1"),
        ({"books": {"ann": OWED}}, "ann: 1 credits are reserved, and no request waits or runs"),
        ({"unseen": 2}, "2 submits that were tried again made another request"),
        ({"died": ["worker-001"]}, "worker-001 ended by itself"),
        ({"stuck": ["gateway-001"]}, "gateway-001 did not stop when told to"),
        ({"processes_left": [4711]}, "4711 lived on"),
    ],
)
def test_what_the_history_cannot_tell_is_a_violation_too(
    others: dict[str, Any], sentence: str
) -> None:
    broken = report(ACCEPTED, ENDED, **others)
    assert not broken.is_clean
    assert list(broken_promises(broken)) == [f"violation: {sentence}"]


def test_a_death_that_was_noticed_too_late_is_a_violation() -> None:
    killed = Event(2, What.KILLED, worker="ann")
    first, second = (
        Event(at, What.STARTED, "r", worker, detail=attempt)
        for at, worker, attempt in ((1, "ann", "1"), (23, "bob", "2"))
    )
    late = report(ACCEPTED, first, killed, second, ENDED)
    assert list(broken_promises(late)) == ["violation: 1 deaths were noticed after more than 20 s"]


def test_a_request_whose_submit_was_given_up_may_have_been_made() -> None:
    assert report(ACCEPTED, ENDED, unseen=1, unended=["s"], gave_up=1).is_clean


def test_the_table_says_what_was_asked_for_and_what_the_cache_did() -> None:
    kinds, cache = {"draft": 3, "finish": 2, "LoRA": 4}, {"hit": 5, "miss": 6, "wait": 7}
    shown = table(report(ACCEPTED, ENDED, kinds=kinds, cache=cache, books={"a": OWED, "b": OWED}))
    lines = dict(zip(*([*column.cells] for column in shown.columns), strict=True))
    assert lines["of them"] == "draft: 3, finish: 2, LoRA: 4"
    assert lines["result cache"] == "hit: 5, miss: 6, wait: 7"
    assert lines["credits charged, left, reserved, of 2 keys"] == "0, 0, 2"
