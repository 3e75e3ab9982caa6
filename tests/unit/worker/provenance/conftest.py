"""A small video, and its boxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.engine import Clip
from models.video.encoding import encode


@pytest.fixture(scope="session")
def small_video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The MP4 of three grey frames."""
    path = tmp_path_factory.mktemp("small") / "small.mp4"
    encode(Clip(106, 60, iter([bytes(106 * 60 * 3)] * 3)), 16, path)
    return path.read_bytes()


@pytest.fixture
def video(tmp_path: Path, small_video: bytes) -> Path:
    """A copy of it to mark."""
    path = tmp_path / "video.mp4"
    path.write_bytes(small_video)
    return path
