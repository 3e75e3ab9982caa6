"""A tiny Mochi in the files of the real one: names, indexes, dtypes, and copies that are not used.

Make one by `TinyMochi.of`, then choose among its files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from models.mochi.parts import Dtypes, Parts
from tests.support.models.t5_tokenizer import write_t5_tokenizer
from tests.support.services.hub_files import MODEL, UNUSED, shards

Files = dict[str, bytes]


@dataclass(frozen=True)
class TinyMochi:
    """Tensors by part, and the small files."""

    small: Files
    tensors: dict[str, dict[str, Tensor]]

    @classmethod
    def of(cls, checkpoint: Path, draft: Path) -> TinyMochi:
        """Give the mock checkpoint a tokenizer like the real one. `draft` is scratch space."""
        parts = Parts.read(checkpoint, Dtypes())
        torch.manual_seed(1)
        tokens = write_t5_tokenizer(draft / "tokenizer")
        parts.text_encoder.resize_token_embeddings(tokens, mean_resizing=False)
        parts.text_encoder.config.save_pretrained(draft / "text_encoder")
        of_mock = ("model_index", "scheduler/scheduler_config", "transformer/config", "vae/config")
        small = {f"{name}.json": (checkpoint / f"{name}.json").read_bytes() for name in of_mock}
        written = {
            str(path.relative_to(draft)): path.read_bytes()
            for path in draft.rglob("*")
            if path.is_file()
        }
        modules = {
            "text_encoder": parts.text_encoder,
            "transformer": parts.transformer,
            "vae": parts.vae,
        }
        return cls(small | written, {name: each.state_dict() for name, each in modules.items()})

    def on_the_hub(self) -> Files:
        """All files of the real model's commit."""
        return {
            **UNUSED,
            **self.small,
            **self.sharded("text_encoder", "model", 2, torch.bfloat16, "", indexed=False),
            **self.sharded("text_encoder", "model", 4),
            **self.sharded("transformer", MODEL, 5),
            **self.sharded("transformer", MODEL, 3, torch.bfloat16, ".bf16"),
            f"vae/{MODEL}.safetensors": self._saved("vae", torch.float32),
            f"vae/{MODEL}.bf16.safetensors": self._saved("vae", torch.bfloat16),
        }

    def in_bf16(self) -> Files:
        """A folder as `save_pretrained(…, variant="bf16")` writes it."""
        return {
            **self.small,
            **self.sharded("text_encoder", "model", 2, torch.bfloat16, ".bf16"),
            **self.sharded("transformer", MODEL, 3, torch.bfloat16, ".bf16"),
            f"vae/{MODEL}.bf16.safetensors": self._saved("vae", torch.bfloat16),
        }

    def sharded(
        self,
        part: str,
        stem: str,
        count: int,
        dtype: torch.dtype = torch.float32,
        variant: str = "",
        *,
        indexed: bool = True,
    ) -> Files:
        names = list(self.tensors[part])
        dealt = {
            shard: names[number::count]
            for number, shard in enumerate(shards(f"{stem}{variant}", count))
        }
        weight_map = {name: shard for shard, held in dealt.items() for name in held}
        index = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()
        files = {f"{part}/{shard}": self._saved(part, dtype, held) for shard, held in dealt.items()}
        return files | (
            {f"{part}/{stem}.safetensors.index{variant}.json": index} if indexed else {}
        )

    def _saved(self, part: str, dtype: torch.dtype, names: list[str] | None = None) -> bytes:
        tensors = self.tensors[part]
        held = {name: tensors[name].to(dtype).clone() for name in names or tensors}
        return save(held, metadata={"format": "pt"})
