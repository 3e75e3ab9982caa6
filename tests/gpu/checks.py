"""Checks of the engine on a GPU. They take any device and size, so a CPU runs them, small, too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from models.engine import Picture, Traits
from models.errors import OutOfMemoryError
from models.mochi.engine import MochiEngine
from models.mochi.loading.assemble import Options, assemble
from models.mochi.loading.compiling import compile_blocks
from models.mochi.memory.host_copy import to_host
from models.mochi.memory.profiles import PROFILES, Profile
from models.mochi.network.attention import choose_kernel, use_kernel
from models.mochi.network.modulation import Conditioner
from models.mochi.network.transformer import Core
from models.mochi.parts import Dtypes, Parts
from models.mochi.synthetic import dummy
from models.mochi.synthetic.mock import write_mock_checkpoint
from models.request.params import GenerateParams
from tests.support.models.checkpoints import Kept, abandon, run

PADDED = 256
"""Tokens of a text in the stock transformer."""

Strictness = Callable[[str], None]
"""Takes `error` and `default`, as `torch.cuda.set_sync_debug_mode`."""


@dataclass(frozen=True)
class Model:
    """The model to check, and its device.

    Attributes:
        make: new parts, the same each time.
        size: of the frames, width and height.
    """

    device: torch.device
    make: Callable[[], Parts]
    size: tuple[int, int]

    def engine(self, profile: Profile = PROFILES["80gb"], *, compiles: bool = False) -> MochiEngine:
        """An engine of new parts."""
        options = Options(profile, choose_kernel("auto", self.device), compiles=compiles)
        traits = Traits("test weights", str(self.device), "bf16")
        return assemble(self.make(), options, traits, self.device, self.size)


def full_width(blocks: int, dtypes: Dtypes, device: torch.device) -> Parts:
    """As `make_dummy`, but with a T5 of one layer, whose weights are quick to make."""
    parts = dummy.empty_dummy(dtypes, blocks)
    with torch.device("meta"):
        small = T5Config(vocab_size=128, d_model=4096, d_kv=64, d_ff=256, num_layers=1, num_heads=8)
        text_encoder = T5EncoderModel(small).eval()  # type: ignore[no-untyped-call]
    parts.read_text_encoder = lambda: text_encoder
    for parameter in parts.text_encoder.parameters():
        parameter.data = parameter.data.to(dtypes.text)
    generator = torch.Generator(device).manual_seed(dummy.SEED)
    for module in (parts.transformer, parts.vae, parts.text_encoder):
        dummy.fill(module, generator)
    return parts


def mock(folder: Path) -> Parts:
    """The mock checkpoint's: small enough for a CPU."""
    return Parts.read(write_mock_checkpoint(folder), Dtypes())


def params(frames: int = 7, **others: Any) -> GenerateParams:
    return GenerateParams(**{"prompt": "a cat", "frames": frames, "steps": 10, **others})


def frames_of(engine: MochiEngine, asked: GenerateParams) -> list[bytes]:
    return list(engine.generate(asked, lambda _step, _steps: None).frames)


class Onlooker:
    """Receives a preview of every other step."""

    every = 2

    def show(self, picture: Picture) -> None:
        assert picture.data


def check_that_no_step_waits(engine: MochiEngine, set_strictness: Strictness) -> int:
    """Raise at the first wait for the device in a step; return the number of checked steps."""
    asked = params()
    frames_of(engine, asked)
    looked_at = 0

    def on_step(step: int, steps: int) -> None:
        nonlocal looked_at
        looked_at += step > 1
        if step:
            set_strictness("error" if step < steps else "default")

    try:
        engine.generate(asked, on_step, None, Onlooker())
    finally:
        set_strictness("default")
    return looked_at


def check_that_frames_are_the_same_twice(engine: MochiEngine) -> None:
    first = frames_of(engine, params(13))
    frames_of(engine, params(7, seed=2))
    assert frames_of(engine, params(13)) == first
    assert len(set(first)) > 1


def check_that_a_run_goes_on_where_another_was_abandoned(engine: MochiEngine) -> None:
    expected = frames_of(engine, params(13))
    kept = Kept(4)
    abandon(engine, params(13), kept, at=9)
    frames_of(engine, params(7, seed=2))
    assert run(engine, params(13), kept) == (expected, [9, 10])
    assert kept.resumed_at == [8]


def check_that_it_survives_too_large_a_request(
    engine: MochiEngine,
    starved: AbstractContextManager[object],
    allocated: Callable[[], int],
) -> None:
    """160 frames do not fit while `starved` lasts; nothing of them stays allocated."""
    expected = frames_of(engine, params())
    before = allocated()
    with starved, pytest.raises(OutOfMemoryError, match="160 frames"):
        frames_of(engine, params(160))
    assert allocated() <= before
    assert frames_of(engine, params()) == expected


def check_that_streamed_blocks_change_nothing(model: Model) -> None:
    streamed = frames_of(model.engine(PROFILES["offload"]), params())
    assert streamed == frames_of(model.engine(PROFILES["24gb"]), params())


def check_that_frames_reach_main_memory(device: torch.device) -> None:
    """Through pinned memory on a GPU, in order and unchanged."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (31, 48, 80, 3), dtype=torch.uint8, generator=generator)
    chunks = (pictures[start:end].to(device) for start, end in ((0, 7), (7, 19), (19, 31)))
    expected = [picture.numpy().tobytes() for picture in pictures[:26]]
    assert list(to_host(chunks, 26)) == expected


# The transformer


@dataclass(frozen=True)
class Case:
    """Inputs of a transformer.

    Attributes:
        latents: `(1, 12, T, h, w)`, float32.
        prompts: embeddings of both branches.
        timestep: 0 to 1000.
    """

    latents: Tensor
    prompts: list[Tensor]
    timestep: float = 300.0

    @classmethod
    def of(
        cls,
        transformer: MochiTransformer3DModel,
        device: torch.device,
        shape: tuple[int, int, int] = (3, 12, 20),
        lengths: tuple[int, int] = (0, 20),
    ) -> Case:
        """Random, the same each time; `shape` is that of the latents."""
        generator = torch.Generator().manual_seed(3)
        width = transformer.config.text_embed_dim
        return cls(
            torch.randn(1, 12, *shape, generator=generator).to(device),
            [torch.randn(length, width, generator=generator).to(device) for length in lengths],
        )


@torch.no_grad()
def stock_velocities(transformer: MochiTransformer3DModel, case: Case) -> Tensor:
    """Of diffusers' transformer, both branches as one batch, in float64."""
    dtype = transformer.proj_out.weight.dtype
    padded = [
        torch.cat((prompt, prompt.new_zeros(PADDED - len(prompt), prompt.shape[1])))
        for prompt in case.prompts
    ]
    lengths = torch.tensor([len(prompt) for prompt in case.prompts], device=case.latents.device)
    velocities: Tensor = transformer(
        hidden_states=case.latents.expand(2, *case.latents.shape[1:]).to(dtype),
        encoder_hidden_states=torch.stack(padded).to(dtype),
        timestep=torch.full((2,), case.timestep, device=case.latents.device, dtype=dtype),
        encoder_attention_mask=torch.arange(PADDED, device=lengths.device) < lengths[:, None],
        return_dict=False,
    )[0]
    return velocities.double()


@torch.no_grad()
def our_velocities(conditioner: Conditioner, core: Core, case: Case) -> Tensor:
    """The same of ours."""
    conditions = conditioner(case.prompts, torch.tensor([case.timestep]))
    with use_kernel(choose_kernel("auto", case.latents.device)):
        return torch.cat(core(case.latents, conditions, 0)).double()


def take_over(
    transformer: MochiTransformer3DModel, device: torch.device
) -> tuple[Conditioner, Core]:
    conditioner, core = Conditioner(transformer), Core(transformer)
    conditioner.place(device)
    core.place(device)
    return conditioner, core


def errors_of_ours_and_stock(
    transformer: MochiTransformer3DModel, device: torch.device
) -> tuple[float, float]:
    """Relative to the same weights in float32. `transformer` is useless afterwards.

    At full depth the three need 64 GB at once: the float32 model is freed before ours is made.
    """
    transformer.requires_grad_(False).to(device)
    case = Case.of(transformer, device)
    exact = copy.deepcopy(transformer).float()
    expected = stock_velocities(exact, case)
    del exact
    stock = _error(stock_velocities(transformer, case), expected)
    ours = _error(our_velocities(*take_over(transformer, device), case), expected)
    return ours, stock


def error_of_compiling(
    transformer: MochiTransformer3DModel, device: torch.device, backend: str = "inductor"
) -> float:
    """Of compiled blocks, relative to the same ones before. `transformer` is useless afterwards."""
    case = Case.of(transformer, device)
    conditioner, core = take_over(transformer.requires_grad_(False), device)
    expected = our_velocities(conditioner, core, case)
    compile_blocks(core.blocks, backend)
    return _error(our_velocities(conditioner, core, case), expected)


def _error(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    assert value.isfinite().all()
    return float((value - expected).norm() / expected.norm())
