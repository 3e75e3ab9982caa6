"""The mock checkpoint: a tiny Mochi of the real classes, with fixed random weights.

It runs through the same code as the real one, from `from_pretrained` to the last frame. Its
pictures are noise, which the videos show in a corner.
"""

from __future__ import annotations

import string
import tempfile
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiTransformer3DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from models.engine import Checkpoints, Clip, EncodeAhead, Engine, OnStep, Previews, Traits
from models.mochi.parts import Parts
from models.mochi.synthetic.values import random_values
from models.mock.scene import Scene, comment_of
from models.request.catalogue import MOCHI, Model
from models.request.params import GenerateParams
from models.settings import make_private_folder

FORMAT = 2
"""Increase this when the checkpoint changes, so that an older one on disk is not reused."""

WIDTH, HEIGHT = 80, 48
"""Size of a frame: close to the shape of 848x480, and multiples of 16."""

HEADS = 2
MOST_CARDS = 2 * HEADS
"""That share a video: each has a head of a branch of guidance."""

CONTRAST = 0.1
"""Factor of the last layer, which keeps its output mostly between black and white."""

TEXT_WIDTH = 32
TOKEN = 4
"""Characters."""
LETTERS = string.printable.strip()


class MockEngine:
    """An `Engine` with mock checkpoints, whose small frames are the corner of a `Scene`."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        """`engines`: one for each model, by slug."""
        self._engines = engines

    @property
    def traits(self) -> Traits:
        return next(iter(self._engines.values())).traits

    @property
    def origin(self) -> str:
        return " ".join(engine.origin for engine in self._engines.values())

    @property
    def encode_ahead(self) -> EncodeAhead | None:
        encodes = {slug: engine.encode_ahead for slug, engine in self._engines.items()}

        def ahead(params: GenerateParams) -> None:
            if encode := encodes[params.model]:
                encode(condensed(params))

        return ahead if all(encodes.values()) else None

    def comment(self, params: GenerateParams) -> str:
        return comment_of(params, self.traits.model)

    def generate(
        self,
        params: GenerateParams,
        on_step: OnStep,
        checkpoints: Checkpoints | None = None,
        previews: Previews | None = None,
        stop_after: int | None = None,
    ) -> Clip:
        engine, asked = self._engines[params.model], condensed(params)
        clip = engine.generate(asked, on_step, checkpoints, previews, stop_after)
        return Scene(params, self.traits.model, "tiny random weights", stop_after).clip(clip)


def condensed(params: GenerateParams) -> GenerateParams:
    """The parameters with a character for every four of the texts, as a token of T5 has about four.

    The tokenizer, whose tokens are characters, would cut prompts that T5 reads to the end.
    """
    texts = {"prompt": params.prompt, "negative_prompt": params.negative_prompt}
    return params.model_copy(update={name: _condensed(text) for name, text in texts.items()})


def _condensed(text: str) -> str:
    parts = (text[start : start + TOKEN] for start in range(0, len(text), TOKEN))
    return "".join(LETTERS[crc32(part.encode()) % len(LETTERS)] for part in parts)


def write_mock_checkpoint(cache_dir: Path, model: Model = MOCHI) -> Path:
    """Write the mock checkpoint of a model to `cache_dir`, unless it is there already.

    Two processes may do this at once: each writes its own folder, and the first rename wins.

    Returns:
        The checkpoint's folder, in the layout of diffusers, with safetensors only.
    """
    name = "mochi" if model is MOCHI else model.slug
    checkpoint = cache_dir / f"mock-{name}-{FORMAT}"
    if checkpoint.is_dir():
        return checkpoint
    make_private_folder(cache_dir)
    with tempfile.TemporaryDirectory(dir=cache_dir) as draft:
        _parts(model.mock_seed).pipeline().save_pretrained(draft)
        try:
            Path(draft).rename(checkpoint)
        except OSError:
            if not checkpoint.is_dir():
                raise
    return checkpoint


def _parts(seed: int) -> Parts:
    tokenizer = character_tokenizer()
    transformer, vae, text_encoder = tiny_transformer(), _vae(), _text_encoder(len(tokenizer))
    generator = torch.Generator().manual_seed(seed)
    for module in (transformer, vae, text_encoder):
        for name, parameter in module.named_parameters():
            parameter.data = random_values(name, parameter.shape, generator)
    vae.decoder.proj_out.weight.data *= CONTRAST
    return Parts(
        tokenizer,
        lambda: text_encoder,
        transformer,
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae,
    )


def tiny_transformer(blocks: int = 2) -> MochiTransformer3DModel:
    """A narrow transformer with diffusers' initial values."""
    return MochiTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=16,
        num_layers=blocks,
        pooled_projection_dim=16,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=16,
    )


def _vae() -> AutoencoderKLMochi:
    # 32 channels at least: its group norms have 32 groups.
    return AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )


def _text_encoder(vocabulary: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def character_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer whose tokens are single ASCII characters; other characters are unknown."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    characters = [(character, -1.0) for character in "▁" + LETTERS]
    return T5Tokenizer(vocab=special + characters, extra_ids=0, model_max_length=256)
