"""What loading finds on the machine and on the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many CUDA devices there seem to be."""
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of the test's own, to be damaged."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(
        tensors: Mapping[str, Tensor], name: str = "style", **metadata: Mapping[str, Any]
    ) -> Path:
        path = tmp_path / f"{name}.safetensors"
        texts = {key: json.dumps(value) for key, value in metadata.items()}
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=texts
        )
        return path

    return write
