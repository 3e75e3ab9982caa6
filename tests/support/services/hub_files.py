"""The files of Mochi 1 on the hub: all names of the real model, around a few random bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

_random = random.Random(1)


def shards(stem: str, count: int) -> list[str]:
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def index(names: Iterable[str]) -> bytes:
    """A shards' index, with a tensor in each."""
    weight_map = {f"tensor{number}": name for number, name in enumerate(names)}
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()


def some(names: Iterable[str], size: int = 1000) -> dict[str, bytes]:
    return {name: _random.randbytes(size) for name in names}


MODEL = "diffusion_pytorch_model"
T5_SHARDS = shards("model", 4)
SHARDS = shards(MODEL, 5)
BF16_SHARDS = shards(f"{MODEL}.bf16", 3)
BIG = f"transformer/{SHARDS[0]}"

_SHARED: dict[str, bytes] = {
    "model_index.json": b'{"_class_name": "MochiPipeline"}',
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/config.json": b"{}",
    **some(f"text_encoder/{name}" for name in T5_SHARDS),
    "text_encoder/model.safetensors.index.json": index(T5_SHARDS),
    "tokenizer/added_tokens.json": b"{}",
    "tokenizer/special_tokens_map.json": b"{}",
    "tokenizer/spiece.model": _random.randbytes(500),
    "tokenizer/tokenizer_config.json": b'{"tokenizer_class": "T5Tokenizer"}',
    "transformer/config.json": b"{}",
    "vae/config.json": b"{}",
    f"vae/{MODEL}.safetensors": _random.randbytes(1000),
}
_FLOAT32: dict[str, bytes] = {
    **some(f"transformer/{name}" for name in SHARDS[1:]),
    BIG: _random.randbytes(200_000),
    f"transformer/{MODEL}.safetensors.index.json": index(SHARDS),
}
_BF16: dict[str, bytes] = {
    **some(f"transformer/{name}" for name in BF16_SHARDS),
    f"transformer/{MODEL}.safetensors.index.bf16.json": index(BF16_SHARDS),
}
UNUSED: dict[str, bytes] = {
    ".gitattributes": b"* lfs",
    "README.md": b"# Mochi",
    "assets/grid.gif": b"moving",
    "decoder.safetensors": b"Genmo's own layout",
    "dit.safetensors": b"Genmo's own layout",
    "encoder.safetensors": b"Genmo's own layout",
    **some(f"text_encoder/{name}" for name in shards("model", 2)),  # bfloat16, in no index
    f"vae/{MODEL}.bf16.safetensors": b"rounded",
}
_HOSTILE: dict[str, bytes] = {
    "text_encoder/pytorch_model.bin": b"a pickle",
    "transformer/deeper/config.json": b"{}",
    "transformer/../../../escaped.json": b"{}",
    f"vae/{MODEL}.fp16.safetensors": b"rounded",
    "vae/model.pt": b"a pickle",
}
"""Not of the real model."""

LOADED = dict(sorted((_SHARED | _FLOAT32).items()))
"""The files that Mochi is loaded from, and that a pull downloads."""
LOADED_IN_BF16 = dict(sorted((_SHARED | _BF16).items()))
"""With a transformer in bfloat16."""
OTHERS = _BF16 | UNUSED | _HOSTILE
INDEXES = {name for name in LOADED if ".index." in name}
