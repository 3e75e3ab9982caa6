"""Which files of a commit a model is loaded from. Only these are pulled."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ValidationError

from models.errors import WeightsError
from models.weights.folder import MANIFEST

FLOAT32 = "float32"
"""The variant without a name."""
_VARIANT = re.compile(r"\.(bf16|fp16)[.-]")
"""In the names of copies in lower precision: `x.bf16.safetensors` and the like."""
_WEIGHTS = re.compile(r"\.safetensors")
"""In the names of weights and of their indexes."""
_INDEX = re.compile(r"\.safetensors\.index(\.\w+)?\.json")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors")


class _Index(BaseModel):
    """What the index of a model's shards is read for."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Layout:
    """The files of a kind of model.

    A name becomes a path on this machine, so only known folders match, one level deep. Pickles do
    not match: loading one runs code of its author.

    Attributes:
        what: for messages.
        known: the names that may be pulled.
        required: patterns that must each match a file.
    """

    what: str
    known: re.Pattern[str]
    required: tuple[str, ...]

    def choose(self, names: Iterable[str], variant: str) -> set[str]:
        """The files to pull, with all shards: `unused_shards` follows from the indexes.

        A variant is taken of the transformer, whose products are in bfloat16 anyway.
        """
        return {
            name
            for name in names
            if self.known.fullmatch(name)
            and _variant(name) == (variant if _has_variants(name) else FLOAT32)
        }

    def lacking(self, names: Collection[str]) -> list[str]:
        """The patterns that no name matches."""
        return [pattern for pattern in self.required if not fnmatch.filter(names, pattern)]


def layout_of(names: Collection[str]) -> Layout:
    """The layout that a commit has, or should have."""
    is_classifier = "config.json" in names and "model_index.json" not in names
    return _CLASSIFIER if is_classifier else _MOCHI


def _has_variants(name: str) -> bool:
    return name.startswith("transformer/") and bool(_WEIGHTS.search(name))


def _variant(name: str) -> str:
    found = _VARIANT.search(name)
    return found[1] if found else FLOAT32


def indexes(names: Iterable[str]) -> set[str]:
    """The files that name the shards of a model."""
    return {name for name in names if _INDEX.search(name)}


def unused_shards(folder: Path, names: Collection[str]) -> set[str]:
    """The shards that no index names, which is how a model finds them.

    Mochi's text encoder lies twice in its folder, and only one copy has an index.

    Args:
        folder: has the indexes of `names`.
        names: of all files.

    Raises:
        WeightsError: an index cannot be read, or names a file that is not among `names`.
    """
    named = {shard for index in indexes(names) for shard in _shards(folder, index)}
    if absent := ", ".join(sorted(named.difference(names))):
        raise WeightsError(
            f"The hub has no {absent}, which an index of the weights names. "
            "Choose another commit with --revision, or other weights with --weights."
        )
    return {name for name in names if _SHARD.search(name)} - named


def _shards(folder: Path, index: str) -> set[str]:
    try:
        names = _Index.model_validate_json((folder / index).read_bytes()).weight_map.values()
    except ValidationError:
        raise WeightsError(
            f"{index} names no shards: it is damaged on the hub. Choose another commit with "
            "--revision, or other weights with --weights."
        ) from None
    return {str(PurePosixPath(index).parent / name) for name in names}


_MOCHI = Layout(
    "Mochi in diffusers' layout as safetensors",
    re.compile(
        r"model_index\.json"
        r"|(scheduler|text_encoder|tokenizer|transformer|vae)/[\w-][\w.-]*\.(json|safetensors)"
        r"|tokenizer/[\w-][\w.-]*\.(model|txt)"
    ),
    (
        "model_index.json",
        "scheduler/*.json",
        "text_encoder/*.safetensors",
        "tokenizer/*",
        "transformer/*.safetensors",
        "vae/*.safetensors",
    ),
)
_CLASSIFIER = Layout(
    "a classifier in transformers' layout as safetensors",
    re.compile(
        rf"(?!{re.escape(MANIFEST)})[\w-][\w.-]*\.(json|jinja|model|txt)"
        r"|model(-\d{5}-of-\d{5})?\.safetensors"
    ),
    ("config.json", "model*.safetensors"),
)
