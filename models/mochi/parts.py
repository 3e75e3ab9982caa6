"""The parts of Mochi as diffusers loads them, before the engine takes them over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLMochi,
    FlowMatchEulerDiscreteScheduler,
    MochiPipeline,
    MochiTransformer3DModel,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

KEPT_IN_FLOAT32 = (
    *("norm_q", "norm_k", "norm_added_q", "norm_added_k", "pos_frequencies"),
    "norm_layer",
)
"""Parameters of the transformer and of the VAE: small, sensitive, and float32 in Genmo's code."""


class _Transformer(MochiTransformer3DModel):  # type: ignore[misc]
    """Keeps `KEPT_IN_FLOAT32` in float32, whatever the rest is loaded as."""

    _keep_in_fp32_modules: ClassVar = list(KEPT_IN_FLOAT32)  # a list: diffusers wants one


class _Vae(AutoencoderKLMochi):  # type: ignore[misc]
    """As `_Transformer`."""

    _keep_in_fp32_modules: ClassVar = list(KEPT_IN_FLOAT32)


@dataclass(frozen=True)
class Dtypes:
    """The dtype in which each part is loaded."""

    text: torch.dtype = torch.float32
    transformer: torch.dtype = torch.float32
    vae: torch.dtype = torch.float32


@dataclass
class Parts:
    """The parts, on any device. They are unusable after an engine has taken them over.

    Attributes:
        read_text_encoder: gives the same one at each call. The first may read it: T5 is as large as
            the transformer, which can leave main memory before.
    """

    tokenizer: PreTrainedTokenizerBase
    read_text_encoder: Callable[[], T5EncoderModel]
    transformer: MochiTransformer3DModel
    scheduler: FlowMatchEulerDiscreteScheduler
    vae: AutoencoderKLMochi

    @classmethod
    def read(cls, folder: Path, dtypes: Dtypes, *, has_text: bool = True) -> Parts:
        """Load a folder in diffusers' layout.

        Args:
            folder: with a folder for each part.
            dtypes: of each part.
            has_text: whether T5 has its weights. Without, it takes no memory.

        Raises:
            OSError, ValueError, SafetensorError: a file is missing or damaged.
        """
        # Only safetensors: loading a pickle runs its author's code.
        safely: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}

        def source(part: str) -> dict[str, Any]:
            return {"subfolder": part, "variant": _variant(folder / part), **safely}

        text_encoder = partial(
            T5EncoderModel.from_pretrained, folder, dtype=dtypes.text, **source("text_encoder")
        )
        if not has_text:
            text_encoder = partial(_empty_text_encoder, folder / "text_encoder", dtypes.text)
        return cls(
            AutoTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True),
            cache(text_encoder),
            _Transformer.from_pretrained(
                folder, torch_dtype=dtypes.transformer, **source("transformer")
            ),
            FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler"),
            _Vae.from_pretrained(folder, torch_dtype=dtypes.vae, **source("vae")),
        )

    @property
    def text_encoder(self) -> T5EncoderModel:
        return self.read_text_encoder()

    def pipeline(self) -> MochiPipeline:
        """The stock pipeline over these parts; an empty prompt is zeros, as in Genmo's code."""
        return MochiPipeline(
            scheduler=self.scheduler,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
            force_zeros_for_empty_prompt=True,
        )


def _empty_text_encoder(folder: Path, dtype: torch.dtype) -> T5EncoderModel:
    config = T5Config.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return T5EncoderModel(config).type(dtype)


def _variant(folder: Path) -> str | None:
    """`bf16` where a part lies in the files of this variant alone, whatever its indexes."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return "bf16" if names and all(".bf16" in name for name in names) else None
