"""LoRAs of MOCHI_LORAS: from files to frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from models.engine import Traits
from models.errors import EngineError, EngineUnavailableError
from models.mochi.engine import MochiEngine
from models.mochi.loading import lora
from models.mochi.loading.assemble import Options, assemble
from models.mochi.loading.load import load, warm_up_requests
from models.mochi.loading.lora import Lora
from models.mochi.memory.profiles import PROFILES
from models.mochi.network.adapters import PLACES, NamedLora
from models.mochi.parts import Dtypes, Parts
from models.settings import EngineSettings
from tests.support.models.checkpoints import Kept, abandon, run
from tests.support.models.mock_mochi import CPU, frames_of, ignore, params
from tests.support.models.tiny_lora import (
    PATCHES,
    in_diffusers_format,
    in_down_up_format,
    random_halves,
    tiny,
)

LAYERS = [
    f"transformer_blocks.{number}.{name}"
    for number in range(2)
    for name in PLACES
    if f"transformer_blocks.{number}.{name}.weight" in dict(tiny().named_parameters())
]


def make(
    checkpoint: Path, dtypes: Dtypes, loras: Mapping[str, NamedLora], *fused: Lora
) -> MochiEngine:
    parts = Parts.read(checkpoint, dtypes)
    lora.fuse(parts.transformer, fused)
    lora.check_named(parts.transformer, loras)
    options, traits = Options(PROFILES["80gb"], "flash"), Traits("mock weights", "CPU", "float32")
    return assemble(parts, options, traits, CPU, (48, 32), loras=loras)


@pytest.fixture
def files(write: Callable[..., Path]) -> dict[str, Path]:
    """Of two trainers, of other ranks and layers."""
    noir = in_diffusers_format(random_halves(LAYERS, rank=4))
    anime = in_down_up_format(random_halves(LAYERS[::2], rank=9))
    anime[f"{LAYERS[0]}.alpha"] = torch.tensor(3.0)
    return {"noir": write(noir, name="noir"), "anime": write(anime, name="anime")}


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_video_is_that_of_the_fused_files(
    checkpoint: Path, files: dict[str, Path], dtype: torch.dtype, most: float
) -> None:
    dtypes = Dtypes(transformer=dtype)
    engine = make(checkpoint, dtypes, lora.read_named(files))
    plain = make(checkpoint, dtypes, {})
    scales = {"anime": 0.1, "noir": 0.2}
    fused = make(checkpoint, dtypes, {}, *(Lora(files[name], scales[name]) for name in scales))
    asked = params(13, negative_prompt="blurry", guidance_scale=2)
    with_loras = asked.model_copy(update={"lora": scales})

    def latents(of: MochiEngine, request: object) -> torch.Tensor:
        assert isinstance(request, type(asked))
        return of._denoise(request, list(of._prompts(request).values()), ignore)

    expected = latents(fused, asked)
    found = latents(engine, with_loras)
    error = float((found - expected).norm() / expected.norm())
    print(f"error {error:.3g}")  # noqa: T201 (the figure of a test)
    assert error < most
    assert float((latents(plain, asked) - expected).norm() / expected.norm()) > 2 * most
    assert frames_of(engine, asked) == frames_of(plain, asked)


def test_a_request_with_loras_resumes_where_their_numbers_are_the_same(
    checkpoint: Path, files: dict[str, Path]
) -> None:
    loras = lora.read_named(files)
    asked = params(lora={"noir": 1.0})
    engine = make(checkpoint, Dtypes(), loras)
    expected, steps = run(engine, asked, None)
    kept = Kept(every=3)
    abandon(engine, asked, kept, at=7)
    renamed = {"noir-2": loras["noir"], "noir": loras["anime"]}
    other = make(checkpoint, Dtypes(), renamed)
    assert run(other, params(lora={"noir-2": 1.0}), kept)[1] == [7, 8, 9, 10]
    assert run(other, params(lora={"noir-2": 1.0}), kept)[0] == expected
    assert run(other, asked, kept)[1] == steps  # other numbers under the same name
    assert run(engine, params(lora={"noir": 0.9}), kept)[1] == steps
    assert run(engine, params(), kept)[1] == steps


def test_an_engine_tells_its_loras_and_refuses_others(
    checkpoint: Path, files: dict[str, Path]
) -> None:
    engine = make(checkpoint, Dtypes(), lora.read_named(files))
    assert engine.traits.loras.keys() == files.keys()
    assert all(len(digest) == 64 for digest in engine.traits.loras.values())
    with pytest.raises(EngineError, match="This worker has no LoRA `other`"):
        frames_of(engine, params(lora={"other": 1.0}))


def test_a_layer_without_adapters_is_refused_by_name(write: Callable[..., Path]) -> None:
    file = write(in_diffusers_format(random_halves([PATCHES])))
    with pytest.raises(
        EngineUnavailableError, match=f"layer {PATCHES} is outside of the attention"
    ):
        lora.read_named({"noir": file})


@pytest.mark.parametrize("problem", ["missing", "other model"])
def test_a_file_that_does_not_fit_stops_the_start(
    tmp_path: Path, write: Callable[..., Path], problem: str
) -> None:
    halves = {"transformer_blocks.7.attn1.to_q": random_halves()["transformer_blocks.0.attn1.to_q"]}
    file = tmp_path / "none.safetensors"
    if problem == "other model":
        file = write(in_diffusers_format(halves))
    with pytest.raises(EngineUnavailableError, match="MOCHI_LORAS"):
        load(EngineSettings(mock=True, loras=f"noir={file}"), tmp_path)


def test_mock_weights_draw_a_lora_for_a_name_alone(cache_dir: Path, files: dict[str, Path]) -> None:
    engine = load(EngineSettings(mock=True, loras=f"a,b,noir={files['noir']}"), cache_dir)
    frames = [
        tuple(frames_of(engine, params(lora=choice)))
        for choice in (None, {"a": 1.0}, {"b": 1.0}, {"noir": 1.0}, {"a": 1.0, "b": 1.0})
    ]
    assert len({*frames}) == len(frames)
    again = load(EngineSettings(mock=True, loras="a"), cache_dir)
    assert tuple(frames_of(again, params(lora={"a": 1.0}))) == frames[1]
    assert again.traits.loras["a"] == engine.traits.loras["a"]


def test_the_warm_up_compiles_the_graphs_with_a_lora() -> None:
    plain, with_lora = warm_up_requests(1), warm_up_requests(1, lora="noir")
    assert with_lora[: len(plain)] == plain
    assert [request.lora for request in with_lora[len(plain) :]] == [{"noir": 1.0}] * 2
    texts = [request.negative_prompt for request in with_lora[len(plain) :]]
    assert texts == [request.negative_prompt for request in plain[: len(texts)]]
