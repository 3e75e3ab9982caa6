"""LoRAs that do not fit or cannot be read are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.errors import EngineUnavailableError
from models.mochi.loading.lora import Lora, fuse
from tests.support.models.tiny_lora import (
    QUERY,
    assert_changed,
    in_diffusers_format,
    random_halves,
    tiny,
)

A, B = f"transformer.{QUERY}.lora_A.weight", f"transformer.{QUERY}.lora_B.weight"


def with_other(key: str, tensor: Tensor) -> dict[str, Tensor]:
    return {**in_diffusers_format(random_halves()), key: tensor}


def without(key: str) -> dict[str, Tensor]:
    tensors = in_diffusers_format(random_halves())
    del tensors[key]
    return tensors


def of_layer(layer: str) -> dict[str, Tensor]:
    return in_diffusers_format({layer: random_halves()[QUERY]})


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (of_layer("transformer_blocks.7.attn1.to_q"), "blocks.7.attn1.to_q is not in Mochi's"),
        (of_layer("model.blocks.0.attn.qkv_x"), "model.blocks.0.attn.qkv_x is not in Mochi's"),
        (of_layer("blocks.0.attn.qkv_z"), "blocks.0.attn.qkv_z is not in Mochi's transformer"),
        (of_layer("time_embed"), "layer time_embed is not in Mochi's transformer"),
        (with_other(A, torch.ones(4, 31)), f"{QUERY} (down (4, 31), up (32, 4)) does not fit"),
        (with_other(B, torch.ones(31, 4)), f"{QUERY} (down (4, 32), up (31, 4)) does not fit"),
        (with_other(A, torch.ones(3, 32)), f"{QUERY} (down (3, 32), up (32, 4)) does not fit"),
        (with_other(A, torch.ones(4, 32, 1)), f"{QUERY} (down (4, 32, 1), up (32, 4)) does not"),
        (with_other(A, torch.ones(0, 32)), f"{A} has the shape (0, 32)"),
        (with_other(A, torch.ones(())), f"{A} has the shape ()"),
        (with_other(f"{QUERY}.alpha", torch.ones(2)), f"{QUERY}.alpha has the shape (2,)"),
        (without(A), f"layer {QUERY} lacks a half"),
        (without(B), f"layer {QUERY} lacks a half"),
        (with_other(f"{QUERY}.lora_down.weight", torch.ones(4, 32)), "repeats another key"),
        (with_other(f"{QUERY}.lora_B.bias", torch.ones(32)), "lora_B.bias is not part of a LoRA"),
        (
            with_other(f"{QUERY}.lora_magnitude_vector", torch.ones(32)),
            "lora_magnitude_vector is not part of a LoRA",
        ),
        (
            with_other("text_encoder.wo.lora_A.weight", torch.ones(4, 32)),
            "text_encoder.wo.lora_A.weight is for the text encoder",
        ),
        (
            with_other("lora_te1_wo.lora_down.weight", torch.ones(4, 32)),
            "lora_te1_wo.lora_down.weight is for the text encoder",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    write: Callable[..., Path], tensors: Mapping[str, Tensor], named: str
) -> None:
    path = write(tensors)
    with pytest.raises(EngineUnavailableError) as caught:
        fuse(tiny(), [Lora(path)])
    message = str(caught.value)
    assert message.startswith(f"The LoRA {path} cannot be used: ")
    assert named in message
    assert "Remove it from MOCHI_LORA" in message


def test_a_refused_file_changes_nothing_and_stops_the_others_too(
    write: Callable[..., Path],
) -> None:
    good = write(in_diffusers_format(random_halves()), name="good")
    bad = write(without(B), name="bad")
    model = tiny()
    with pytest.raises(EngineUnavailableError, match="bad"):
        fuse(model, [Lora(good), Lora(bad)])
    assert_changed(model, {})


@pytest.mark.parametrize("content", [None, b"", b"\x80\x02a pickle", b"\xff" * 100])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "style.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineUnavailableError, match="cannot be read") as caught:
        fuse(tiny(), [Lora(path)])
    assert str(path) in str(caught.value)
    assert "Check the path in MOCHI_LORA" in str(caught.value)


def test_a_download_that_broke_off_is_named(write: Callable[..., Path]) -> None:
    path = write(in_diffusers_format(random_halves()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EngineUnavailableError, match="cannot be read"):
        fuse(tiny(), [Lora(path)])


def test_a_file_without_weights_is_not_passed_over(write: Callable[..., Path]) -> None:
    path = write({}, kwargs={})
    with pytest.raises(EngineUnavailableError, match="it is empty"):
        fuse(tiny(), [Lora(path)])


def test_settings_that_are_no_json_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_file(in_diffusers_format(random_halves()), path, metadata={"kwargs": "r=4"})
    with pytest.raises(EngineUnavailableError, match="cannot be read"):
        fuse(tiny(), [Lora(path)])
