"""Prompts to text embeddings, as long as the prompt and no longer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from models.mochi.memory.streaming import pin, visit

MOST_TOKENS = 256
"""Of a prompt, its end mark included: what Mochi was trained with."""
MOST_KEPT = 64
"""Embeddings. The longest takes 4 MiB in float32."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as the transformer reads it.

    Attributes:
        embedding: `(L, 4096)`, L from 0 to 256, of the encoder's dtype.
        tokens: how many the text has; those after the 256th were not read.
    """

    embedding: Tensor
    tokens: int

    @property
    def is_cut(self) -> bool:
        """Whether the end of the text was not read."""
        return self.tokens > MOST_TOKENS


class TextEncoder:
    """T5, with the latest embeddings kept: a negative prompt is nearly always the one before."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoder: T5EncoderModel,
        *,
        lives_on: torch.device,
        works_on: torch.device,
    ) -> None:
        """Put the encoder in its place.

        Args:
            tokenizer: of the encoder.
            encoder: with its weights loaded, in the dtype in which it is to work.
            lives_on: where the weights stay between prompts.
            works_on: where they are copied for a prompt that is not known yet, and where the
                embeddings are.
        """
        self._tokenizer = tokenizer
        self._encoder = encoder
        encoder.to(lives_on)  # type: ignore[arg-type]
        self._device = works_on
        if lives_on != works_on:
            pin(encoder)
        self._kept: OrderedDict[str, Prompt] = OrderedDict()

    def encode(self, text: str) -> Prompt:
        """The embedding of a text. An empty one has no tokens at all, as Genmo has it."""
        prompt = self._kept.pop(text, None) or self._encode(text)
        self._kept[text] = prompt
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return prompt

    def _encode(self, text: str) -> Prompt:
        if not text:
            width = self._encoder.config.d_model
            return Prompt(torch.empty(0, width, dtype=self._encoder.dtype, device=self._device), 0)
        tokens = len(self._tokenizer(text).input_ids)
        # Cut by the tokenizer, which keeps the end mark.
        ids = self._tokenizer(
            text, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
        ).input_ids
        with visit(self._encoder, self._device):
            embedding = self._encoder(ids.to(self._device)).last_hidden_state[0]
        return Prompt(embedding, tokens)
