"""`scripts/bench-gpu`, on a small model: each phase is known to work before a GPU is there."""

from __future__ import annotations

import json
import os
import tarfile
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.settings import EngineSettings
from tests.bench.gpu.__main__ import NAMES, PHASES, main
from tests.bench.gpu.lab import Lab
from tests.bench.gpu.runner import Figures, Phase, pack, run_phases

NOT_TRIED = {"tests", "reference", "48gb", "offload", "fp8", "step-cache"}
"""A process of its own, and other settings for the code of `24gb`."""


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MOCHI_")}
    monkeypatch.setattr(os, "environ", outside)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Call:
    """A call in `folder`; each phase that runs takes a second."""

    def __init__(self, folder: Path, seconds: float = 100) -> None:
        self.path = folder / "figures.jsonl"
        self.clock = 0.0
        self.seconds = seconds
        self.ran: list[str] = []
        self.figures = Figures(self.path, lambda: self.clock)

    def phase(
        self, name: str, seconds: float = 1, run: Callable[[], object] = lambda: None
    ) -> Phase:
        def ran() -> None:
            self.ran.append(name)
            self.clock += 1
            run()

        return Phase(name, seconds, ran)

    def __call__(self, *phases: Phase, recovers: bool = True, only: tuple[str, ...] = ()) -> bool:
        left = lambda: self.seconds - self.clock  # noqa: E731
        return run_phases(phases, self.figures, left, lambda: recovers, only)

    def told(self, figure: str) -> list[str]:
        return [line["phase"] for line in read(self.path) if line["figure"] == figure]


def fail() -> None:
    raise RuntimeError("The card is on fire.")


# Time, errors and further calls


def test_a_second_call_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    first, second = Call(tmp_path, seconds=2), Call(tmp_path)
    assert first(first.phase("a"), first.phase("b"), first.phase("c"))
    assert first.told("skipped") == ["c"]
    assert second(second.phase("a"), second.phase("b"), second.phase("c"))
    assert (first.ran, second.ran) == (["a", "b"], ["c"])


def test_a_phase_that_needs_more_time_than_is_left_makes_way_for_a_shorter_one(
    tmp_path: Path,
) -> None:
    call = Call(tmp_path, seconds=10)
    assert call(call.phase("long", 11), call.phase("short", 9))
    assert call.ran == ["short"]


def test_a_phase_that_fails_is_told_and_not_tried_again(tmp_path: Path) -> None:
    first, second = Call(tmp_path), Call(tmp_path)
    assert not first(first.phase("a", run=fail), first.phase("b"))
    assert first.ran == ["a", "b"]
    assert read(first.path)[0]["error"] == "The card is on fire."
    assert "in fail" in read(first.path)[0]["trace"]
    assert second(second.phase("a", run=fail), second.phase("b"), second.phase("c"))
    assert second.ran == ["c"]


def test_a_broken_card_ends_the_call_and_the_next_goes_on_after_the_phase(tmp_path: Path) -> None:
    first, second = Call(tmp_path), Call(tmp_path)
    assert not first(first.phase("a", run=fail), first.phase("b"), recovers=False)
    assert first.told("stopped") == ["a"]
    second(second.phase("a", run=fail), second.phase("b"))
    assert (first.ran, second.ran) == (["a"], ["b"])


def test_a_phase_that_is_named_runs_again(tmp_path: Path) -> None:
    for _ in range(2):
        call = Call(tmp_path)
        call(call.phase("a"), call.phase("b"), only=("b",))
        assert call.ran == ["b"]


def test_a_figure_is_on_the_disk_before_its_phase_ends(tmp_path: Path) -> None:
    call, seen = Call(tmp_path), []

    def measure() -> None:
        call.figures.add("a", "speed", tflops=700)
        seen.extend(read(call.path))

    call(call.phase("a", run=measure))
    assert seen == [{"phase": "a", "at": 1, "figure": "speed", "tflops": 700}]


def test_a_line_that_a_crash_has_cut_off_does_no_harm(tmp_path: Path) -> None:
    first = Call(tmp_path)
    first(first.phase("a"))
    with first.path.open("a") as file:
        file.write('{"phase": "b", "at"')
    second = Call(tmp_path)
    second(second.phase("a"), second.phase("b"))
    assert second.ran == second.told("ended")[1:] == ["b"]


# The phases


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a call left its files."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Of MochiRoPE, which asks for float32 and gets it.
        warnings.filterwarnings("ignore", "In CPU autocast")
        patch.setattr(os, "environ", dict(os.environ))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        tried = [name for name in NAMES if name not in NOT_TRIED]
        arguments = [str(folder), "--dry-run", "--seconds", "9999", "--only", *tried]
        assert main(arguments) == 0
    return folder


@pytest.fixture(scope="module")
def lines(out: Path) -> list[dict[str, Any]]:
    return read(out / "figures.jsonl")


def test_every_phase_ends_without_an_error(lines: list[dict[str, Any]]) -> None:
    ended = [line for line in lines if line["figure"] == "ended"]
    assert [line["phase"] for line in ended] == [name for name in NAMES if name not in NOT_TRIED]
    assert not any("error" in line for line in ended)


def test_requests_of_both_engines_have_their_stages(lines: list[dict[str, Any]]) -> None:
    requests = [
        (line["phase"], line["engine"], line["steps"], line["number"])
        for line in lines
        if line["figure"] == "request" and 0 < line["step"] < line["denoising"] < line["total"]
    ]
    for phase, engine in (("eager", "ours"), ("stock", "stock"), ("compiled", "ours")):
        assert [each for each in requests if each[0] == phase] == [
            (phase, engine, 10, number) for number in (0, 1)
        ]
    assert ("whole", "ours", 30, 1) in requests
    assert ("longest-stock", "stock", 10, 0) in requests


def test_ours_is_as_exact_as_stock_and_compiling_changes_nothing(
    lines: list[dict[str, Any]],
) -> None:
    (errors,) = [line for line in lines if line["figure"] == "error against float32"]
    assert 0 < errors["ours"] <= 1.1 * errors["stock"]
    (error,) = [line for line in lines if line["figure"] == "error of compiling"]
    assert error["ours"] < 1e-2


def test_convolutions_name_the_kernels_that_ran(lines: list[dict[str, Any]]) -> None:
    rows = [line for line in lines if line["figure"] == "convolution"]
    assert [line["dtype"] for line in rows] == ["torch.bfloat16", "torch.float32"]
    assert all(any("conv" in name for name in line["kernels"]) for line in rows)


def test_figures_and_traces_are_in_one_archive(out: Path) -> None:
    with tarfile.open(out / "figures.tar.gz") as tar:
        assert set(tar.getnames()) == {
            *("figures.jsonl", "ours-1.json.gz", "stock-1.json.gz", "decoding-1.json.gz")
        }


def test_a_call_after_the_last_phase_only_packs_again(tmp_path: Path) -> None:
    figures = Figures(tmp_path / "figures.jsonl", lambda: 0.0)
    for name in NAMES:
        figures.add(name, "ended")
    assert main([str(tmp_path), "--dry-run"]) == 0
    assert [line["figure"] for line in read(tmp_path / "figures.jsonl")][len(NAMES) :] == ["began"]
    assert (tmp_path / "figures.tar.gz").exists()


def test_settings_of_phases_are_settings_of_the_engine() -> None:
    settings = [getattr(run, "keywords", {}) for _, _, run in PHASES]
    names = {name for each in settings for name in each} - {"gib"}
    assert names == {"precision", "profile", "fp8", "step_cache"}
    for each in settings:
        EngineSettings(**{name: value for name, value in each.items() if name != "gib"})


def test_engines_leave_the_memory_before_others_are_loaded(tmp_path: Path) -> None:
    lab = Lab(tmp_path, Figures(tmp_path / "figures.jsonl", lambda: 0.0), thorough=False)
    engine = lab.compiled().subjects.ours
    held = [weakref.ref(each) for each in (engine, *engine.core.parameters())]
    del engine
    lab.drop()
    assert {each() for each in held} == {None}


def test_without_a_card_only_a_dry_run_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "out")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert pack(tmp_path).exists()
