"""Reads LoRA files, and fuses those of MOCHI_LORA into the transformer's weights.

Here a file is used in full or refused, and a weight is rounded once. diffusers over peft ignores
text-encoder weights and halves of pairs without an error, knows neither alphas nor `lora_down` nor
Genmo's names for Mochi, and rounds to bfloat16 after each LoRA.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.errors import EngineUnavailableError
from models.mochi.network.adapters import LowRank, NamedLora

ITEM = re.compile(r"(?P<path>.+?\.safetensors)(\s*=\s*(?P<scale>\S+))?")

KEY = re.compile(
    r"(base_model\.model\.)?((transformer|diffusion_model)\.)?(?P<layer>.+)"
    r"\.((?P<half>lora_(A|B|down|up))(\.default)?(\.weight)?|alpha)"
)
"""With the prefixes of peft, of diffusers and of ComfyUI, and the name of peft's first adapter."""
PARTS = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", None: "alpha"}
TEXT_ENCODER_KEY = re.compile(r"text_encoder|lora_te")

RANDOM_RANK = 4

GENMO_LAYER = re.compile(r"blocks\.(?P<block>\d+)\.attn\.(?P<name>\w+)")
GENMO_LAYERS = {
    "qkv_x": ("to_q", "to_k", "to_v"),
    "qkv_y": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "proj_x": ("to_out.0",),
    "proj_y": ("to_add_out",),
}
"""Layers of Genmo's trainer, each with the layers of diffusers for its outputs, in order. Source:
AsymmetricAttention in https://github.com/genmoai/mochi, and diffusers'
`convert_mochi_transformer_checkpoint_to_diffusers`."""


@dataclass(frozen=True)
class Lora:
    """A safetensors file, and its strength: 1 is as trained, any finite number is allowed."""

    path: Path
    scale: float = 1.0


def parse(text: str) -> list[Lora]:
    """Parse MOCHI_LORA: `FILE.safetensors` or `FILE.safetensors=0.8`, comma-separated; or empty.

    Raises:
        EngineUnavailableError: the text has another form.
    """
    return [_parse_item(item.strip()) for item in text.split(",")] if text.strip() else []


def _parse_item(item: str) -> Lora:
    match = ITEM.fullmatch(item)
    try:
        scale = float(match["scale"] or 1) if match else math.nan
    except ValueError:
        scale = math.nan
    if not match or not math.isfinite(scale):
        raise EngineUnavailableError(
            f"MOCHI_LORA contains {item!r}, which is not a LoRA. "
            "Type FILE.safetensors or FILE.safetensors=0.8, and a comma between two of them."
        )
    return Lora(Path(match["path"]), scale)


def fuse(transformer: nn.Module, loras: Iterable[Lora]) -> None:
    """Add LoRAs, in any order, to the weights of a transformer.

    Args:
        transformer: of diffusers, unchanged, of any dtype, on any device.
        loras: all are read and checked before the first weight changes.

    Raises:
        EngineUnavailableError: a file is missing or damaged, or does not fit the transformer.
    """
    weights = _matrices(transformer)
    changes: dict[str, list[LowRank]] = {}
    for lora in loras:
        with _problems_reported(lora.path, "MOCHI_LORA"):
            for change in _read(lora.path, lora.scale):
                _check(change, weights)
                changes.setdefault(change.layer, []).append(change)
    with torch.no_grad():
        for layer, its_changes in changes.items():
            fused = weights[layer].to(
                torch.float32, copy=True, memory_format=torch.contiguous_format
            )
            for change in its_changes:
                change.add_to(fused)
            weights[layer].copy_(fused)


class _MisfitError(Exception):
    """A file does not fit; the text completes "The LoRA cannot be used: …"."""


def read_named(named: Mapping[str, Path]) -> dict[str, NamedLora]:
    """Read the LoRAs of MOCHI_LORAS, for `Adapters`.

    Args:
        named: the file of each name.

    Raises:
        EngineUnavailableError: a file is missing or damaged, or changes a layer without adapter.
    """
    return {name: _read_named(path) for name, path in named.items()}


def check_named(transformer: nn.Module, loras: Mapping[str, NamedLora]) -> None:
    """Check that the LoRAs of MOCHI_LORAS fit a transformer of diffusers.

    Raises:
        EngineUnavailableError: one does not.
    """
    weights = _matrices(transformer)
    for name, lora in loras.items():
        with _problems_reported(name, "MOCHI_LORAS"):
            for change in lora.changes:
                _check(change, weights)


def random_lora(name: str, transformer: nn.Module) -> NamedLora:
    """A LoRA for mock weights, of numbers that its name draws: of rank 4, for the visual queries.

    Its products are as large as the weights.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    changes = []
    for layer, weight in _matrices(transformer).items():
        if layer.endswith("attn1.to_q"):
            down, up = (
                torch.randn(shape, generator=generator) / shape[1] ** 0.5
                for shape in ((RANDOM_RANK, weight.shape[1]), (weight.shape[0], RANDOM_RANK))
            )
            changes.append(LowRank(layer, down, up, 1.0))
    return NamedLora(f"random numbers of {name}", tuple(changes))


def _read_named(path: Path) -> NamedLora:
    with _problems_reported(path, "MOCHI_LORAS"):
        changes = tuple(_read(path))
        for change in changes:
            if change.place is None:
                raise _MisfitError(
                    f"its layer {change.source[0]} is outside of the attention and the "
                    "feed-forward networks of Mochi's blocks, which only MOCHI_LORA can change"
                )
        with path.open("rb") as file:
            return NamedLora(hashlib.file_digest(file, "sha256").hexdigest(), changes)


def _matrices(transformer: nn.Module) -> dict[str, Tensor]:
    return {
        name.removesuffix(".weight"): parameter
        for name, parameter in transformer.named_parameters()
        if name.endswith(".weight") and parameter.dim() > 1
    }


@contextmanager
def _problems_reported(lora: Path | str, setting: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        raise EngineUnavailableError(
            f"The LoRA {lora} cannot be read: {error}\nCheck the path in {setting}, and that "
            "the file is complete and of the format safetensors."
        ) from error
    except _MisfitError as misfit:
        raise EngineUnavailableError(
            f"The LoRA {lora} cannot be used: {misfit}. Remove it from {setting}, or replace "
            "it with one for Mochi 1 in the format of diffusers, peft, ComfyUI or Genmo's trainer."
        ) from misfit


def _read(path: Path, scale: float = 1.0) -> Iterator[LowRank]:
    tensors, settings = _load(path)
    for layer, parts in _by_layer(tensors).items():
        yield from _changes(layer, parts, settings, scale)


def _check(change: LowRank, weights: Mapping[str, Tensor]) -> None:
    layer, shapes = change.source
    if change.layer not in weights:
        raise _MisfitError(f"its layer {layer} is not in Mochi's transformer")
    if not change.fits(weight := weights[change.layer]):
        raise _MisfitError(
            f"its layer {layer} ({shapes}) does not fit {change.layer} {tuple(weight.shape)}"
        )


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by key, and the trainer's settings that the file holds."""
    with safe_open(path, framework="pt") as file:
        keys, metadata = file.keys(), file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in keys}
    settings = json.loads(metadata.get("kwargs", "{}"))  # Genmo's
    for name, value in json.loads(metadata.get("lora_adapter_metadata", "{}")).items():  # peft's
        settings[name.removeprefix("transformer.")] = value
    return tensors, settings


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors by the file's name of the layer, and by part: down, up, alpha."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if TEXT_ENCODER_KEY.match(key):
            raise _MisfitError(
                f"its key {key} is for the text encoder, and only LoRAs for the "
                "transformer are supported"
            )
        match = KEY.fullmatch(key)
        if not match:
            raise _MisfitError(f"its key {key} is not part of a LoRA (lora_A, lora_B, alpha)")
        part = PARTS[match["half"]]
        if not (tensor.numel() == 1 if part == "alpha" else tensor.dim() > 1 and len(tensor)):
            raise _MisfitError(f"its key {key} has the shape {tuple(tensor.shape)}")
        parts = layers.setdefault(match["layer"], {})
        if part in parts:
            raise _MisfitError(f"its key {key} repeats another key")
        parts[part] = tensor
    if not layers:
        raise _MisfitError("it is empty")
    return layers


def _changes(
    layer: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any], scale: float
) -> Iterator[LowRank]:
    if not parts.keys() >= {"down", "up"}:
        raise _MisfitError(f"its layer {layer} lacks a half: lora_A and lora_B are a pair")
    factor = scale * _strength(layer, parts, settings)
    shapes = ", ".join(f"{part} {tuple(half.shape)}" for part, half in parts.items())
    names = _names_in_diffusers(layer)
    for name, up in zip(names, parts["up"].tensor_split(len(names)), strict=True):
        yield LowRank(name, parts["down"], up, factor, (layer, shapes))


def _names_in_diffusers(layer: str) -> list[str]:
    match = GENMO_LAYER.fullmatch(layer)
    if not match or match["name"] not in GENMO_LAYERS:
        return [layer]
    attention = f"transformer_blocks.{match['block']}.attn1"
    return [f"{attention}.{name}" for name in GENMO_LAYERS[match["name"]]]


def _strength(layer: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> float:
    """The trainer's factor of up @ down: alpha / rank, or 1 where the file has no alpha."""
    rank = len(parts["down"])
    if "alpha" in parts:
        return parts["alpha"].item() / rank
    genmo_alpha = "qkv_proj_lora_alpha" if ".qkv_" in layer else "out_proj_lora_alpha"
    if genmo_alpha in settings:
        return float(settings[genmo_alpha]) / rank
    # peft's LoraConfig; `alpha_pattern` overrides it for layers, matched as by `get_pattern_key`.
    alpha = settings.get("lora_alpha", rank)
    for pattern, its_alpha in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = its_alpha
            break
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
