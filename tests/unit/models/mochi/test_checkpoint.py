"""Mochi going on from where another run was abandoned."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.engine import Traits
from models.mochi import checkpoint as checkpoint_module
from models.mochi.checkpoint import LatentsKeeper
from models.mochi.denoise import Schedule, denoise
from models.mochi.engine import MochiEngine
from models.mochi.loading.assemble import Options, assemble
from models.mochi.loading.load import assemble_mock
from models.mochi.loading.lora import Lora
from models.mochi.loading.plan import LoadPlan
from models.mochi.memory.profiles import PROFILES, MemoryPlan
from models.mochi.network.attention import Kernel
from models.mochi.parts import Dtypes, Parts
from models.mochi.synthetic.mock import MockEngine, write_mock_checkpoint
from models.request.params import MODEL, GenerateParams
from models.weights.folder import MANIFEST
from models.weights.manifest import Manifest, WeightsFile
from tests.support.models.checkpoints import AbandonedError, Kept, abandon, run
from tests.support.models.tiny_mochi import (
    embeddings,
    make_scheduler,
    make_stock,
    noise,
    our_conditions,
    our_loop,
    take_over,
)

CPU = torch.device("cpu")
STEPS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_checkpoint(tmp_path_factory.mktemp("cache"))


def make(
    folder: Path,
    kernel: Kernel = "flash",
    weights_stamp: str = "",
    dtypes: Dtypes = Dtypes(),  # noqa: B008 (frozen)
) -> MochiEngine:
    """An engine with the mock's weights, as a new process would have it."""
    options = Options(PROFILES["80gb"], kernel)
    traits = Traits("mock weights", "CPU", "float32")
    parts = Parts.read(folder, dtypes)
    return assemble(parts, options, traits, CPU, (32, 32), weights_stamp=weights_stamp)


@pytest.fixture(scope="module")
def engine(folder: Path) -> MochiEngine:
    return make(folder)


def params(frames: int = 2, **others: Any) -> GenerateParams:
    return GenerateParams(**{"prompt": "a cat", "frames": frames, "steps": STEPS, **others})


@pytest.fixture(scope="module")
def expected(engine: MochiEngine) -> list[bytes]:
    """The frames of an undisturbed run."""
    frames, steps = run(engine, params(), None)
    assert steps == list(range(1, STEPS + 1))
    return frames


@pytest.fixture
def abandoned(engine: MochiEngine) -> Kept:
    """Of a run that was abandoned after four steps."""
    kept = Kept(4)
    abandon(engine, params(), kept, at=5)
    return kept


@pytest.mark.parametrize(
    ("every", "at", "done"),
    [
        *((1, 1, 0), (1, 2, 1), (1, 6, 5), (1, 10, 9)),
        *((3, 3, 0), (3, 4, 3), (3, 6, 3), (3, 7, 6), (3, 10, 9)),
        *((9, 9, 0), (9, 10, 9), (10, 10, 0), (75, 10, 0)),
    ],
)
def test_another_run_goes_on_where_one_was_abandoned_with_the_same_frames(
    engine: MochiEngine, expected: list[bytes], every: int, at: int, done: int
) -> None:
    kept = Kept(every)
    abandon(engine, params(), kept, at)
    calls: list[object] = []
    hook = engine.core.register_forward_pre_hook(lambda *_: calls.append(1))
    frames, steps = run(engine, params(), kept)
    hook.remove()
    assert frames == expected
    assert steps == list(range(done + 1, STEPS + 1))
    assert len(calls) == STEPS - done
    assert kept.resumed_at == ([done] if done else [])


def test_a_run_may_be_abandoned_many_times_by_as_many_processes(
    folder: Path, expected: list[bytes]
) -> None:
    kept = Kept(2)
    for at in (4, 7, 8, 10):
        abandon(make(folder), params(), kept, at)
    frames, steps = run(make(folder), params(), kept)
    assert frames == expected
    assert kept.resumed_at == [2, 6, 6, 8]
    assert steps == [9, 10]


@pytest.mark.parametrize(("every", "saved"), [(1, 9), (2, 4), (5, 1), (9, 1), (10, 0)])
def test_an_undisturbed_run_keeps_every_so_many_steps_but_never_the_last(
    engine: MochiEngine, expected: list[bytes], every: int, saved: int
) -> None:
    kept = Kept(every)
    assert run(engine, params(), kept)[0] == expected
    assert (kept.saved, kept.resumed_at) == (saved, [])


def test_the_mock_goes_on_as_well(folder: Path) -> None:
    engine = MockEngine({MODEL: assemble_mock(Parts.read(folder, Dtypes()), step_cache=0)})
    frames, _ = run(engine, params(), None)
    kept = Kept(4)
    abandon(engine, params(), kept, at=9)
    assert run(engine, params(), kept) == (frames, [9, 10])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_latents_of_either_precision_are_brought_back_to_the_last_bit(dtype: torch.dtype) -> None:
    conditioner, core = take_over(make_stock(dtype=dtype))
    conditions = our_conditions(conditioner, embeddings(0, 20, dtype=dtype), STEPS)
    kept = Kept(3)

    def go_on(until: int) -> Tensor:
        def on_step(step: int, _steps: int) -> None:
            if step == until:
                raise AbandonedError

        return denoise(
            core,
            noise(dtype=dtype),
            conditions,
            Schedule.of(make_scheduler(), STEPS),
            guidance_scale=4.5,
            on_step=on_step,
            keeper=LatentsKeeper(kept, "a request", STEPS),
        )

    with pytest.raises(AbandonedError):
        go_on(until=8)
    latents = go_on(until=STEPS + 1)
    assert kept.resumed_at == [6]
    assert latents.dtype is dtype
    assert torch.equal(latents, our_loop(core, conditions, noise(dtype=dtype)))


# What does not fit


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"prompt": "a dog"},
        {"negative_prompt": "blurry"},
        {"guidance_scale": 4.6},
        {"steps": 11},
        {"frames": 8},
    ],
    ids=str,
)
def test_another_request_starts_from_the_noise(
    engine: MochiEngine, abandoned: Kept, other: dict[str, Any]
) -> None:
    asked = params(**other)
    assert run(engine, asked, abandoned) == run(engine, asked, None)
    assert abandoned.resumed_at == []


@pytest.mark.parametrize(
    "other",
    [
        {"model": "Mochi 1"},
        {"device": "a card"},
        {"precision": "bf16"},
        {"profile": "24gb"},
        {"lossy": ("fp8",)},
    ],
    ids=str,
)
def test_an_engine_with_other_traits_starts_from_the_noise(
    engine: MochiEngine, expected: list[bytes], abandoned: Kept, other: dict[str, Any]
) -> None:
    another = replace(engine, traits=replace(engine.traits, **other))
    assert run(another, params(), abandoned) == (expected, list(range(1, STEPS + 1)))
    assert abandoned.resumed_at == []


def test_so_does_one_of_another_size(engine: MochiEngine, abandoned: Kept) -> None:
    wider = replace(engine, width=48)
    assert run(wider, params(), abandoned) == run(wider, params(), None)
    assert abandoned.resumed_at == []


def test_so_does_one_with_other_weights_or_put_together_otherwise(
    folder: Path, expected: list[bytes], abandoned: Kept
) -> None:
    for another in (make(folder, weights_stamp="others"), make(folder, kernel="math")):
        kept = Kept(4, abandoned.data)
        assert len(run(another, params(), kept)[1]) == STEPS
        assert kept.resumed_at == []
    same = make(folder)
    assert run(same, params(), abandoned) == (expected, list(range(5, STEPS + 1)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torch.version.cuda", "12.8"),
        ("torch.backends.cudnn.version", lambda: 91400),
        ("torch.backends.cpu.get_cpu_capability", lambda: "another"),
    ],
)
def test_an_engine_with_other_kernels_has_another_origin(
    engine: MochiEngine, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(name, value)
    assert make(folder).origin != engine.origin


def test_an_engine_whose_text_encoder_rounds_otherwise_has_another_origin(
    engine: MochiEngine, folder: Path
) -> None:
    """On hosts with the same card, T5 works on their CPUs in different dtypes."""
    assert make(folder).origin == engine.origin
    assert make(folder, dtypes=Dtypes(text=torch.bfloat16)).origin != engine.origin


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda _: b"x" * 10_000,
        lambda _: pickle.dumps(Trap()),
        lambda data: data[:31],
        lambda data: data[:32],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[32:],
        lambda data: bytes(len(data)),
    ],
)
def test_what_is_damaged_is_passed_over(
    engine: MochiEngine, expected: list[bytes], abandoned: Kept, spoil: Any
) -> None:
    assert abandoned.data
    abandoned.data = spoil(abandoned.data)
    assert run(engine, params(), abandoned) == (expected, list(range(1, STEPS + 1)))
    assert abandoned.resumed_at == []


def test_so_is_what_a_later_version_has_written(
    engine: MochiEngine,
    expected: list[bytes],
    abandoned: Kept,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint_module, "FORMAT", checkpoint_module.FORMAT + 1)
    later = Kept(4)
    abandon(engine, params(), later, at=5)
    assert run(engine, params(), abandoned) == (expected, list(range(1, STEPS + 1)))
    monkeypatch.undo()
    assert run(engine, params(), later) == (expected, list(range(1, STEPS + 1)))
    assert abandoned.resumed_at == later.resumed_at == []


def test_weights_are_told_apart_by_their_files(folder: Path, tmp_path: Path) -> None:
    def stamp(loras: list[Lora], weights: Path | None = folder) -> str:
        plan = MemoryPlan(PROFILES["80gb"], "bf16", "")
        options = Options(plan.profile, "flash")
        traits = Traits("Mochi 1", "a card", "bf16")
        return LoadPlan(CPU, plan, options, traits, weights, loras).weights_stamp

    file = tmp_path / "style.safetensors"
    file.write_bytes(b"a style")
    stamps = [stamp([]), stamp([Lora(file)]), stamp([Lora(file, 0.5)]), stamp([], None)]
    assert stamps[:2] == [stamp([]), stamp([Lora(file)])]
    moved = shutil.copytree(folder, tmp_path / "elsewhere"), tmp_path / "copy.safetensors"
    shutil.copy(file, moved[1])
    assert stamp([Lora(moved[1])], moved[0]) == stamps[1]
    file.write_bytes(b"another")
    stamps += [stamp([Lora(file)])]
    assert len(set(stamps)) == len(stamps)


def test_pulled_weights_are_told_apart_by_the_checksums_of_the_hub(tmp_path: Path) -> None:
    def stamp(name: str, checksum: str) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        files = {"vae/a": WeightsFile(size=1, checksum=f"sha256:{checksum * 64}")}
        manifest = Manifest(hub_id="a/b", commit="0" * 40, files=files)
        (folder / MANIFEST).write_text(manifest.model_dump_json())
        plan = MemoryPlan(PROFILES["80gb"], "bf16", "")
        options = Options(plan.profile, "flash")
        traits = Traits("Mochi 1", "a card", "bf16")
        return LoadPlan(CPU, plan, options, traits, folder, []).weights_stamp

    assert stamp("here", "a") == stamp("there", "a") != stamp("there", "b")
