"""What is measured: our engine, and the stock pipeline beside it over the same weights."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import MochiPipeline
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase

from models.errors import EngineUnavailableError
from models.mochi.engine import MochiEngine
from models.mochi.loading.assemble import assemble
from models.mochi.loading.load import assemble_mock, make_parts, silence
from models.mochi.loading.plan import prepare
from models.mochi.memory.profiles import Plan
from models.mochi.network import fp8
from models.mochi.parts import Dtypes, Parts
from models.mochi.synthetic.mock import write_mock_checkpoint
from models.params import HEIGHT, WIDTH
from models.settings import EngineSettings

console = Console(stderr=True)

SMALL = (
    "No CUDA device: a small model of another shape ran on the CPU, in float32 and not compiled. "
    "Nothing here tells how fast Mochi is."
)


@dataclass(frozen=True)
class Subjects:
    """Loaded and ready.

    Attributes:
        ours: our engine.
        stock: the pipeline of diffusers, if it is compared with.
        mixed: whether the stock transformer runs under autocast to bfloat16, as diffusers'
            documents say for the precision of Genmo's code.
        tokenizer: of the prompts.
        config: of the transformer.
        plan: of our engine; None for the small model.
        load_seconds: to make or read the weights and put them in their places.
        note: what a reader of the figures must know; `` where there is a GPU.
    """

    ours: MochiEngine
    stock: MochiPipeline | None
    mixed: bool
    tokenizer: PreTrainedTokenizerBase
    config: Any
    plan: Plan | None
    load_seconds: float
    note: str = ""


def load_subjects(
    settings: EngineSettings, cache_dir: Path, *, compares: bool, memory_gib: float | None = None
) -> Subjects:
    """Load what `settings` ask for; where there is no CUDA device, a small model instead.

    Args:
        settings: of the engine; weights are `dummy`, a folder or a hub id.
        cache_dir: where pulled weights are.
        compares: whether the stock pipeline is wanted, too.
        memory_gib: pretend that the card is this large.

    Raises:
        EngineUnavailableError: the text says what to change.
    """
    started = time.perf_counter()
    silence()
    if not torch.cuda.is_available():
        return _small(settings, started, compares=compares)
    # Compiled anew for each measurement, unless the environment names a folder to keep it in.
    compiled = Path(tempfile.mkdtemp(prefix="mochi-bench-"))
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    prepared = prepare(settings, cache_dir, compiled, memory_gib)
    plan, device = prepared.plan, prepared.device
    if compares and plan.profile.name != "80gb":
        raise EngineUnavailableError(
            "The stock pipeline has all weights on the GPU, and ours shares them with it only in "
            f"the profile 80gb, not in {plan.profile.name}. Leave --compare out, or type --profile "
            "80gb."
        )
    console.print(f"loading {prepared.traits}, {plan.reason} …")
    parts = make_parts(prepared)
    console.print("moving the weights to their places …")
    stock, parts = stock_beside(parts) if compares else (None, parts)
    engine = assemble(parts, prepared.options, prepared.traits, device, (WIDTH, HEIGHT))
    if stock is not None:
        stock.to(device)
    torch.cuda.empty_cache()  # what the random numbers were drawn in
    return Subjects(
        engine,
        stock,
        mixed=plan.precision == "reference",
        tokenizer=parts.tokenizer,
        config=parts.transformer.config,
        plan=plan,
        load_seconds=time.perf_counter() - started,
    )


def stock_beside(parts: Parts) -> tuple[MochiPipeline, Parts]:
    """The stock pipeline over `parts`, and parts for our engine that share its weights.

    Only the VAE is there twice, as ours changes the order of its weights, and of the transformer
    what ours concatenates.
    """
    twin = replace(parts, transformer=_twin(parts.transformer), vae=copy.deepcopy(parts.vae))
    pipeline = parts.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, twin


def _twin(module: nn.Module) -> nn.Module:
    """Another structure over the same parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def _small(settings: EngineSettings, started: float, *, compares: bool) -> Subjects:
    if settings.fp8:
        fp8.check(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts.read(write_mock_checkpoint(Path(folder)), Dtypes())
    stock, parts = stock_beside(parts) if compares else (None, parts)
    engine = assemble_mock(parts, settings.step_cache)
    return Subjects(
        engine,
        stock,
        mixed=False,
        tokenizer=parts.tokenizer,
        config=parts.transformer.config,
        plan=None,
        load_seconds=time.perf_counter() - started,
        note=SMALL,
    )
