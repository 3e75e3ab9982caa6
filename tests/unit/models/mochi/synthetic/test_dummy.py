from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from models.mochi.parts import KEPT_IN_FLOAT32, Dtypes, Parts
from models.mochi.synthetic import dummy
from models.mochi.synthetic.dummy import empty_dummy

BF16, FLOAT32 = torch.bfloat16, torch.float32
MIXED = Dtypes(text=FLOAT32, transformer=BF16, vae=FLOAT32)


@pytest.fixture(scope="module")
def full() -> Parts:
    """Of full size, without numbers: those take some 30 GB."""
    return empty_dummy(MIXED)


def modules(parts: Parts) -> dict[str, nn.Module]:
    return {
        "transformer": parts.transformer,
        "text_encoder": parts.text_encoder,
        "vae": parts.vae,
    }


def count(module: nn.Module) -> float:
    """Parameters, in billions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e9


# Shapes


def test_it_is_as_large_as_mochi_1(full: Parts) -> None:
    assert count(full.transformer) == pytest.approx(10.03, abs=0.005)
    assert count(full.text_encoder) == pytest.approx(4.76, abs=0.005)
    assert count(full.vae.decoder) == pytest.approx(0.363, abs=0.0005)


def test_it_is_shaped_as_mochi_1(full: Parts) -> None:
    transformer = full.transformer.config
    assert transformer.num_layers == len(full.transformer.transformer_blocks) == 48
    assert transformer.num_attention_heads * transformer.attention_head_dim == 24 * 128
    assert transformer.pooled_projection_dim == 1536
    assert transformer.text_embed_dim == full.text_encoder.config.d_model == 4096
    assert transformer.in_channels == full.vae.config.latent_channels == 12
    assert full.vae.temporal_compression_ratio == 6
    assert full.vae.spatial_compression_ratio == 8
    assert full.scheduler.config.invert_sigmas
    assert full.tokenizer.model_max_length == 256
    assert len(full.tokenizer) <= full.text_encoder.config.vocab_size


def test_there_may_be_fewer_blocks() -> None:
    two = empty_dummy(MIXED, 2).transformer
    assert [block.context_pre_only for block in two.transformer_blocks] == [False, True]


# Dtypes


@pytest.mark.parametrize(
    "dtypes", [MIXED, Dtypes(), Dtypes(text=BF16, transformer=BF16, vae=BF16)], ids=str
)
def test_each_part_has_its_dtype_and_what_is_delicate_float32(dtypes: Dtypes) -> None:
    parts = empty_dummy(dtypes, 2)
    wanted = {
        "transformer": dtypes.transformer,
        "text_encoder": dtypes.text,
        "vae": dtypes.vae,
    }
    for part, module in modules(parts).items():
        for name, parameter in module.named_parameters():
            is_delicate = any(word in KEPT_IN_FLOAT32 for word in name.split("."))
            assert parameter.dtype == (FLOAT32 if is_delicate else wanted[part]), name
    delicate = [name for name, p in parts.transformer.named_parameters() if p.dtype == FLOAT32]
    assert dtypes.transformer == FLOAT32 or len(delicate) == 2 * 4 + 1


def test_the_text_encoder_has_one_embedding(full: Parts) -> None:
    assert full.text_encoder.shared.weight is full.text_encoder.encoder.embed_tokens.weight


def test_nothing_drops_out(full: Parts) -> None:
    for module in modules(full).values():
        drops = [child for child in module.modules() if isinstance(child, nn.Dropout) and child.p]
        assert not any(child.training for child in drops)


# Numbers


def small(seed: int = 1) -> dict[str, nn.Module]:
    """A small one of each part, filled."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "transformer": MochiTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=2,
                pooled_projection_dim=16,
                text_embed_dim=32,
                time_embed_dim=16,
            ).to(BF16),
            "text_encoder": T5EncoderModel(
                T5Config(
                    vocab_size=98,
                    d_model=32,
                    d_kv=8,
                    d_ff=64,
                    num_layers=1,
                    num_heads=4,
                    feed_forward_proj="gated-gelu",
                )
            ),
            "vae": AutoencoderKLMochi(
                encoder_block_out_channels=(32, 32, 32, 32),
                decoder_block_out_channels=(32, 32, 32, 32),
                layers_per_block=(1, 1, 1, 1, 1),
            ),
        }
    generator = torch.Generator().manual_seed(seed)
    for module in parts.values():
        dummy.fill(module, generator)
    return parts


def test_no_parameter_is_left_constant_or_empty() -> None:
    for module in small().values():
        assert not list(module.buffers())
        for name, parameter in module.named_parameters():
            assert parameter.device.type == "cpu"
            assert parameter.isfinite().all()
            assert parameter.float().std() > 0.01, name


def test_filling_keeps_dtypes_and_what_is_shared() -> None:
    parts = small()
    assert {parameter.dtype for parameter in parts["transformer"].parameters()} == {BF16}
    text_encoder = parts["text_encoder"]
    assert isinstance(text_encoder, T5EncoderModel)
    assert text_encoder.shared.weight is text_encoder.encoder.embed_tokens.weight


def test_the_numbers_are_the_same_each_time() -> None:
    for one, again, other in zip(
        small().values(), small().values(), small(seed=2).values(), strict=True
    ):
        for values, same, different in zip(
            one.parameters(), again.parameters(), other.parameters(), strict=True
        ):
            assert torch.equal(values, same)
            assert not torch.equal(values, different)
