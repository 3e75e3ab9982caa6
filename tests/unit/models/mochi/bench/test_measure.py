from __future__ import annotations

import json
import os
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import OutOfMemoryError
from models.mochi.bench import __main__ as command
from models.mochi.bench import measure, stages, subjects
from models.mochi.bench.__main__ import Order
from models.mochi.bench.measure import Bench
from models.mochi.bench.probes import counted_syncs, matmul_peak
from models.mochi.bench.results import Name, Seconds
from models.mochi.bench.stages import Times, run_ours, run_stock
from models.mochi.bench.subjects import SMALL_MODEL, Subjects, stock_beside
from models.mochi.network.attention import pairs_to_halves
from models.mochi.parts import Dtypes, Parts
from models.mochi.synthetic.mock import write_mock_checkpoint
from models.request.params import GenerateParams
from models.settings import EngineSettings
from models.video.encoding import encode
from server.cli import main as cli

ORDER = Order([7], 10, 2, compare="stock", memory=None, output=None, trace=None, data_dir=".")
ENGINE = "bench engine --frames 7 --steps 10 --repeats 2 --compare stock"
STAGES = ("text", "conditioning", "denoising", "decoding", "rest")


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("MOCHI_WEIGHTS", "MOCHI_FP8", "MOCHI_STEP_CACHE", "MOCHI_LORA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def both() -> Subjects:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return subjects.load_subjects(EngineSettings(), Path(), compares=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one run of the command left its files."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        handed_over: list[str] = []
        patch.setattr(os, "environ", dict(os.environ))
        patch.setattr(os, "execv", lambda _, arguments: handed_over.extend(arguments))
        arguments = [*ENGINE.split(), "-o", f"{folder}/out.json", "--trace", f"{folder}/trace"]
        cli.app(arguments, standalone_mode=False)
        assert command.main(handed_over[-1:]) == 0
    return folder


@pytest.fixture(scope="module")
def result(written: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((written / "out.json").read_text())
    return loaded


def params(frames: int = 7, **others: Any) -> GenerateParams:
    return GenerateParams(**{"prompt": "a cat", "frames": frames, "steps": 10, **others})


def run_order(**others: Any) -> int:
    return command.main([json.dumps(asdict(replace(ORDER, **others)))])


def times(total: float = 10.0, **others: Any) -> Times:
    given = {"text": 1.0, "conditioning": 0.5, "steps": [1.0, 2.0, 4.0], "decoding": 1.0}
    return Times(total=total, **{**given, **others})


# The command


def test_json_has_both_engines_with_cold_and_warm_stages(result: dict[str, Any]) -> None:
    ours, stock = result["rows"]
    assert (ours["engine"], stock["engine"]) == ("ours", "stock")
    for row in (ours, stock):
        assert (row["frames"], row["steps"], row["runs"]) == (7, 10, 2)
        assert row["visual_tokens"] == 2 * 3 * 5
        assert row["is_cold"]
        assert row["error"] == row["note"] == ""
        for seconds in (row["first"], row["warm"]):
            assert sum(seconds[stage] for stage in STAGES) == pytest.approx(
                seconds["total"], rel=0.2
            )
            assert 0 < seconds["step"] < seconds["denoising"] < seconds["total"]
        assert row["tflops"] == pytest.approx(row["step_tflop"] / row["warm"]["step"])
        assert row["share"] == pytest.approx(row["tflops"] / result["peak_tflops"])
    assert ours["step_tflop"] == stock["step_tflop"]
    assert ours["warm"]["conditioning"] > stock["warm"]["conditioning"] == 0


def test_json_says_what_ran_where_and_that_it_is_not_mochi(result: dict[str, Any]) -> None:
    assert result["note"] == SMALL_MODEL
    machine, setup = result["machine"], result["setup"]
    assert not machine["is_gpu"]
    assert machine["versions"]["torch"] == torch.__version__
    assert set(machine["versions"]) == {"torch", "cuda", "diffusers", "transformers", "python"}
    assert (setup["weights"], setup["precision"]) == ("mock weights", "float32")
    assert (setup["attention"], setup["compiled"], setup["cap_gib"]) == ("flash", False, None)
    assert all(row["syncs"] is None and row["allocated_gib"] == 0 for row in result["rows"])


def test_a_trace_and_its_largest_kernels_are_kept(written: Path, result: dict[str, Any]) -> None:
    assert {file.name for file in (written / "trace").iterdir()} == {
        "ours-7.json.gz",
        "stock-7.json.gz",
    }
    ours = [kernel for kernel in result["kernels"] if kernel["engine"] == "ours"]
    assert any("attention" in kernel["name"] for kernel in ours)
    assert [kernel["ms"] for kernel in ours] == sorted(
        (kernel["ms"] for kernel in ours), reverse=True
    )


def test_the_table_has_each_stage_and_says_that_it_is_not_mochi(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_order(frames=[1], repeats=1, compare=None) == 0
    said = capsys.readouterr()
    for words in ("1 frames, 10 steps", "ours, cold", "warm, 1", "VAE, s", "TFLOP/s in a step"):
        assert words in said.out
    assert "No CUDA device" in said.out
    assert "the first request" in said.err  # progress
    assert "stock" not in said.out


def test_a_request_that_fails_is_told_and_the_other_engine_is_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OutOfMemoryError("The GPU has too little memory for 7 frames.")

    monkeypatch.setattr(measure, "run_ours", fail)
    assert run_order(output=str(tmp_path / "out.json")) == 1
    ours, stock = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert ours["error"] == "The GPU has too little memory for 7 frames."
    assert ours["first"] is ours["warm"] is None
    assert stock["warm"]["total"] > 0
    assert "too little memory" in capsys.readouterr().out


def test_what_this_machine_cannot_do_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOCHI_FP8", "true")
    assert run_order() == 1
    assert "MOCHI_FP8 needs a GPU" in capsys.readouterr().err


# Taking turns


def test_engines_take_turns_so_that_none_is_always_the_second(
    both: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Name] = []

    def run(_: Bench, name: Name, asked: GenerateParams, *__: object) -> Times:
        ran.append(name)
        return times(total=float(len(ran)))

    monkeypatch.setattr(Bench, "_run", run)
    ours, stock = Bench(both).measure(7, steps=10, repeats=3)
    assert ran == ["ours", "stock", "stock", "ours", "ours", "stock", "stock", "ours"]
    assert ours.first is not None
    assert ours.first.total == 1
    assert ours.warm is not None
    assert ours.warm.total == 5  # the median of 4, 5 and 8
    assert ours.runs == stock.runs == 3


def test_only_the_first_length_is_cold(both: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "_run", lambda *_: times())
    bench = Bench(both)
    rows = (row for frames in (1, 7) for row in bench.measure(frames, steps=10, repeats=1))
    assert [row.is_cold for row in rows] == [
        *(True, True),
        *(False, False),
    ]


def test_no_prompt_is_asked_for_twice(both: Subjects) -> None:
    bench = Bench(both)
    prompts = [bench._params(7, 10).prompt for _ in range(5)]
    assert len(set(prompts)) == 5
    assert len({len(prompt) for prompt in prompts}) == 1


# Stages


def test_the_rest_is_what_no_stage_accounts_for() -> None:
    assert times().rest == pytest.approx(10 - 1 - 0.5 - 7 - 1)
    assert times().step == 2


def test_each_stage_has_a_median_of_its_own() -> None:
    seconds = Seconds.median(
        [times(text=1.0, total=10.0), times(text=3.0, total=30.0), times(text=2.0)]
    )
    assert (seconds.text, seconds.total) == (2.0, 10.0)


def test_a_watched_request_gives_the_frames_of_the_engine(both: Subjects, tmp_path: Path) -> None:
    asked = params()
    encode(both.ours.generate(asked, lambda *_: None), asked.fps, tmp_path / "plain.mp4")
    steps: list[tuple[int, int]] = []
    seen = run_ours(both.ours, asked, tmp_path / "watched.mp4", lambda *step: steps.append(step))
    assert (tmp_path / "watched.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()
    assert steps == [(step, 10) for step in range(1, 11)]
    assert len(seen.steps) == 10
    assert min(seen.text, seen.conditioning, seen.decoding, *seen.steps) > 0
    assert seen.rest > 0


def test_the_stock_pipeline_makes_the_frames_that_it_makes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[bytes]] = []
    monkeypatch.setattr(stages, "encode", lambda clip, *_: drawn.append(list(clip.frames)))
    parts = Parts.read(write_mock_checkpoint(tmp_path), Dtypes())
    pipeline = parts.pipeline()
    asked = params(5, seed=7)
    run_stock(pipeline, asked, tmp_path / "video.mp4", (80, 48))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = pipeline(
            asked.prompt,
            width=80,
            height=48,
            num_frames=7,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(7),
        ).frames[0]
    assert drawn == [[picture.tobytes() for picture in alone[:5]]]


def test_both_engines_share_their_weights_and_do_each_other_no_harm(both: Subjects) -> None:
    assert both.stock is not None
    theirs = both.stock.transformer.transformer_blocks[0]
    ours: Any = both.ours.core.blocks[0]
    assert ours.ff.net[2].weight.data_ptr() == theirs.ff.net[2].weight.data_ptr()
    assert ours.to_out.weight.data_ptr() == theirs.attn1.to_out[0].weight.data_ptr()
    assert ours.to_v.weight.data_ptr() == theirs.attn1.to_v.weight.data_ptr()
    assert torch.equal(
        ours.to_qk.weight[-theirs.attn1.to_k.out_features :],
        pairs_to_halves(theirs.attn1.to_k.weight, len(theirs.attn1.norm_k.weight)),
    )


def test_a_twin_has_a_structure_of_its_own(tmp_path: Path) -> None:
    parts = Parts.read(write_mock_checkpoint(tmp_path), Dtypes())
    pipeline, twin = stock_beside(parts)
    del twin.transformer.transformer_blocks[0].attn1.to_q
    del twin.vae.encoder
    assert pipeline.transformer.transformer_blocks[0].attn1.to_q is not None
    assert pipeline.vae.encoder is not None
    assert twin.text_encoder is pipeline.text_encoder


# Looking at the GPU


def test_waits_are_counted_by_pytorchs_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with counted_syncs() as count:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        assert count() == 0
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        assert count() == 2
    assert modes == ["warn", "default"]


def test_the_peak_is_that_of_products_of_matrices() -> None:
    assert 0 < matmul_peak(torch.device("cpu"), repeats=2) < 100
