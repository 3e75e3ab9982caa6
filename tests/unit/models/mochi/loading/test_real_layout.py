"""Weights with the files of the real ones, from the hub to a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.mochi.loading.load import assemble_mock, read_weights
from models.mochi.parts import KEPT_IN_FLOAT32, Dtypes
from models.weights.pull import verify
from tests.support.models.mock_mochi import frames_of, params
from tests.support.models.pulls import fetch, ignore
from tests.support.models.real_layout import Files, TinyMochi
from tests.support.services.hub import FakeHub, fake_hub_here
from tests.support.services.hub_files import LOADED, LOADED_IN_BF16

BF16 = Dtypes(text=torch.bfloat16, transformer=torch.bfloat16, vae=torch.bfloat16)


@pytest.fixture(scope="module")
def mochi(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyMochi:
    return TinyMochi.of(checkpoint, tmp_path_factory.mktemp("draft"))


@pytest.fixture
def hub(mochi: TinyMochi, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub_here(monkeypatch) as hub:
        hub.files = mochi.on_the_hub()
        yield hub


def write(files: Files, folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_pull_brings_a_video_and_no_byte_that_it_does_not_need(
    mochi: TinyMochi, hub: FakeHub, tmp_path: Path
) -> None:
    folder = fetch(hub, tmp_path)
    assert hub.bytes_sent == {name: len(hub.files[name]) for name in LOADED}
    assert verify(folder, ignore) == []
    parts = read_weights(folder, Dtypes())
    for part, tensors in mochi.tensors.items():
        loaded = getattr(parts, part).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert len(frames_of(assemble_mock(parts, 0.0), params())) == 2


def test_a_transformer_in_bfloat16_is_the_same_but_for_its_norms(
    hub: FakeHub, tmp_path: Path
) -> None:
    full = read_weights(fetch(hub, tmp_path / "full"), BF16)
    hub.bytes_sent.clear()
    folder = fetch(hub, tmp_path / "rounded", variant="bf16")
    assert hub.bytes_sent == {name: len(hub.files[name]) for name in LOADED_IN_BF16}
    rounded = read_weights(folder, BF16)
    differ = {
        name.split(".")[-2 if name.endswith("weight") else -1]
        for name, tensor in rounded.transformer.state_dict().items()
        if not torch.equal(tensor, full.transformer.state_dict()[name])
    }
    assert differ == {"norm_q", "norm_k", "norm_added_q", "norm_added_k", "pos_frequencies"}
    for part in ("text_encoder", "vae"):
        loaded = getattr(full, part).state_dict()
        others = getattr(rounded, part).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in others.items())


def test_a_folder_in_bfloat16_alone_is_loaded(mochi: TinyMochi, tmp_path: Path) -> None:
    parts = read_weights(write(mochi.in_bf16(), tmp_path), BF16)
    for part, tensors in mochi.tensors.items():
        loaded = getattr(parts, part).state_dict()
        for name, tensor in tensors.items():
            assert torch.equal(loaded[name].float(), tensor.bfloat16().float())
            is_kept = any(kept in name for kept in KEPT_IN_FLOAT32)
            assert loaded[name].dtype == (torch.float32 if is_kept else torch.bfloat16)


def test_of_a_folder_with_both_the_float32_files_are_loaded(
    mochi: TinyMochi, tmp_path: Path
) -> None:
    parts = read_weights(write(mochi.in_bf16() | mochi.on_the_hub(), tmp_path), Dtypes())
    for part, tensors in mochi.tensors.items():
        loaded = getattr(parts, part).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
