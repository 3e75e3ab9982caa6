"""Loads the two engines that the benchmark compares: ours, and the pipeline of diffusers."""

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
from models.mochi.loading.load import assemble_mock, make_parts, silence_libraries
from models.mochi.loading.plan import LoadPlan, plan_loading
from models.mochi.memory.profiles import MemoryPlan
from models.mochi.network import fp8
from models.mochi.parts import Dtypes, Parts
from models.mochi.synthetic.dummy import make_dummy
from models.mochi.synthetic.mock import write_mock_checkpoint
from models.request.params import HEIGHT, WIDTH
from models.settings import EngineSettings

console = Console(stderr=True)

SMALL_MODEL = (
    "No CUDA device: a small model of another shape ran on the CPU, in float32 and not compiled. "
    "These figures do not tell how fast Mochi is."
)


@dataclass(frozen=True)
class Subjects:
    """Loaded engines.

    Attributes:
        ours: our engine.
        stock: the pipeline of diffusers; None without a comparison.
        mixed: whether the stock transformer runs under autocast to bfloat16, which diffusers'
            documentation recommends for the precision of Genmo's code.
        tokenizer: of the prompts.
        config: of the transformer.
        memory: plan of our engine; None for the small model.
        load_seconds: to read or draw the weights and move them into place.
        note: what a reader of the figures must know; empty on a GPU.
    """

    ours: MochiEngine
    stock: MochiPipeline | None
    mixed: bool
    tokenizer: PreTrainedTokenizerBase
    config: Any
    memory: MemoryPlan | None
    load_seconds: float
    note: str = ""


def load_subjects(
    settings: EngineSettings, cache_dir: Path, *, compares: bool, memory_gib: float | None = None
) -> Subjects:
    """Load the engines; without a CUDA device, a small model instead.

    Args:
        settings: of the engine; weights are `dummy`, a folder or a hub id.
        cache_dir: where pulled weights are.
        compares: whether to load the stock pipeline, too.
        memory_gib: limit on the GPU memory.

    Raises:
        EngineUnavailableError: the text says what to change.
    """
    started = time.perf_counter()
    silence_libraries()
    if not torch.cuda.is_available():
        return _small_model(settings, started, compares=compares)
    # Compiled anew for each run, unless the environment names a cache folder.
    compiled = Path(tempfile.mkdtemp(prefix="mochi-bench-"))
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    plan = plan_loading(settings, cache_dir, compiled, memory_gib)
    if compares and plan.memory.profile.name != "80gb":
        raise EngineUnavailableError(
            "The stock pipeline keeps all weights on the GPU. Ours shares them with it only in "
            f"the profile 80gb, not in {plan.memory.profile.name}. Leave --compare out, or type "
            "--profile 80gb."
        )
    console.print(f"loading {plan.traits}, {plan.memory.reason} …")
    parts = _make_parts(plan)
    console.print("moving the weights into place …")
    stock, parts = stock_beside(parts) if compares else (None, parts)
    ours = assemble(parts, plan.options, plan.traits, plan.device, (WIDTH, HEIGHT))
    if stock is not None:
        stock.to(plan.device)
    torch.cuda.empty_cache()  # what drawing random weights has left
    return Subjects(
        ours,
        stock,
        mixed=plan.memory.precision == "reference",
        tokenizer=parts.tokenizer,
        config=parts.transformer.config,
        memory=plan.memory,
        load_seconds=time.perf_counter() - started,
    )


def _make_parts(plan: LoadPlan) -> Parts:
    if plan.folder or plan.loras or plan.memory.profile.name != "80gb":
        return make_parts(plan)
    # Random numbers that are drawn on the card stay there: 30 GB would go back and forth otherwise.
    return make_dummy(plan.dtypes, plan.device, plan.device)


def stock_beside(parts: Parts) -> tuple[MochiPipeline, Parts]:
    """The stock pipeline over `parts`, and parts for our engine that share its weights.

    Memory holds two copies of the VAE, whose weights ours reorders, and of the transformer's
    layers that ours concatenates.
    """
    twin = replace(parts, transformer=_twin(parts.transformer), vae=copy.deepcopy(parts.vae))
    pipeline = parts.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, twin


def _twin(module: nn.Module) -> nn.Module:
    """A copy of the modules over the same parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def _small_model(settings: EngineSettings, started: float, *, compares: bool) -> Subjects:
    if settings.fp8:
        fp8.check(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts.read(write_mock_checkpoint(Path(folder)), Dtypes())
        parts.read_text_encoder()  # before the folder is deleted
    stock, parts = stock_beside(parts) if compares else (None, parts)
    return Subjects(
        assemble_mock(parts, settings.step_cache),
        stock,
        mixed=False,
        tokenizer=parts.tokenizer,
        config=parts.transformer.config,
        memory=None,
        load_seconds=time.perf_counter() - started,
        note=SMALL_MODEL,
    )
