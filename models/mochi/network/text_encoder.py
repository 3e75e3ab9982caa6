"""Encodes prompts to text embeddings without padding."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedTokenizerBase, T5EncoderModel

from models.mochi.memory.streaming import pin, visit

MAX_TOKENS = 256
"""Of a prompt with its end mark; Mochi was trained with as many."""
MAX_KEPT = 64
"""Embeddings to keep. The longest takes 4 MiB in float32."""
EXACT_ATTENTION = "exact"
"""Name of `attend` in transformers."""


@dataclass(frozen=True)
class Prompt:
    """An encoded prompt.

    Attributes:
        embedding: `(L, 4096)`, L from 0 to 256, of the encoder's dtype.
        tokens: of the whole text; those after the 256th were not read.
    """

    embedding: Tensor
    tokens: int

    @property
    def is_cut(self) -> bool:
        return self.tokens > MAX_TOKENS


class TextEncoder:
    """T5 with a cache of the latest embeddings, as most negative prompts repeat.

    Attributes:
        works_on_cpu: whether prompts can be encoded while the card works on a video.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoder: T5EncoderModel,
        *,
        lives_on: torch.device,
        works_on: torch.device,
    ) -> None:
        """Move the encoder to its device.

        Args:
            tokenizer: of the encoder.
            encoder: with its weights, in the dtype of its work.
            lives_on: where the weights stay between prompts.
            works_on: where they are copied to encode a new prompt, and where the embeddings are.
        """
        self._tokenizer = tokenizer
        self._encoder = encoder
        encoder.requires_grad_(False)  # noqa: FBT003 (torch's own signature)
        encoder.to(lives_on)  # type: ignore[arg-type]
        self._device = works_on
        self.works_on_cpu = works_on.type == "cpu"
        if self.works_on_cpu:
            # Not by SDPA: another thread's `use_kernel` counts in all of the process.
            AttentionInterface.register(EXACT_ATTENTION, attend)
            encoder.set_attn_implementation(EXACT_ATTENTION)
        if lives_on != works_on:
            pin(encoder)
        self._kept: OrderedDict[str, Prompt] = OrderedDict()
        self._lock = Lock()
        """Of `_kept`, and of the tokenizer, which keeps whether it cuts."""

    def encode(self, text: str) -> Prompt:
        """Encode a text. An empty one has no tokens at all, as in Genmo's code.

        On the CPU, two threads may do so at once. None waits for the work of the other.
        """
        with self._lock:
            if prompt := self._kept.get(text):
                self._kept.move_to_end(text)
                return prompt
        prompt = self._encode(text)
        with self._lock:
            self._kept[text] = prompt
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return prompt

    def _encode(self, text: str) -> Prompt:
        if not text:
            width = self._encoder.config.d_model
            return Prompt(torch.empty(0, width, dtype=self._encoder.dtype, device=self._device), 0)
        with self._lock:
            tokens = len(self._tokenizer(text).input_ids)
            # The tokenizer cuts the text, but keeps the end mark.
            ids = self._tokenizer(
                text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            ).input_ids
        with visit(self._encoder, self._device):
            embedding = self._encoder(ids.to(self._device)).last_hidden_state[0]
        return Prompt(embedding, tokens)


def attend(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: None,
    *,
    scaling: float,
    position_bias: Tensor,
    **_others: object,
) -> tuple[Tensor, None]:
    """T5's attention, with logits and softmax in float32 as SDPA has them.

    That of transformers rounds both to the dtype of the weights. There is no padding, so no mask.

    Args:
        query: `(1, heads, L, width)`.
        key: as `query`.
        value: as `query`.
        scaling: of the products.
        position_bias: `(1, heads, L, L)`.

    Returns:
        `(1, L, heads, width)`, and no weights.
    """
    logits = query.float() @ key.float().mT * scaling + position_bias
    return (logits.softmax(-1).to(value.dtype) @ value).transpose(1, 2), None
