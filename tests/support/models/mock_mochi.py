"""The engine on mock weights, parameters for it, and what it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import T5Config, T5EncoderModel

from models.engine import Engine, Traits
from models.mochi.engine import MochiEngine
from models.mochi.loading.assemble import Options, assemble
from models.mochi.memory.profiles import PROFILES
from models.mochi.parts import Dtypes, Parts
from models.request.params import GenerateParams
from tests.support.models.tiny_mochi import randomise

CPU = torch.device("cpu")


def bare(checkpoint: Path, width: int = 32, height: int = 32) -> MochiEngine:
    """The mock's engine, without words around its frames."""
    options = Options(PROFILES["80gb"], "flash")
    traits = Traits("mock weights", "CPU", "float32")
    parts = Parts.read(checkpoint, Dtypes())
    return assemble(parts, options, traits, CPU, (width, height))


def slow_text_encoder(checkpoint: Path) -> None:
    """Give a checkpoint a T5 that takes seconds for 256 tokens, and hardly any time for 10."""
    folder = checkpoint / "text_encoder"
    config = T5Config.from_pretrained(folder)
    config.num_layers, config.num_heads, config.d_kv = 32, 64, 64
    encoder = T5EncoderModel(config)
    randomise(encoder)
    encoder.save_pretrained(folder)


def params(frames: int = 2, **others: Any) -> GenerateParams:
    return GenerateParams(**{"prompt": "a cat", "frames": frames, "steps": 10, **others})


def ignore(step: int, total: int) -> None:
    pass


def frames_of(engine: Engine, asked: GenerateParams) -> list[bytes]:
    return list(engine.generate(asked, ignore).frames)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
