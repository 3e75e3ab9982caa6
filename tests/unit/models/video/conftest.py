from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def ffmpeg_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shell script that is run instead of ffmpeg; the test writes it."""
    script = tmp_path / "ffmpeg"
    script.touch(mode=0o700)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    return script
