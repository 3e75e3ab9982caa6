"""The URL of the broker is checked before anything is started, and never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.settings import WorkerSettings


@pytest.mark.parametrize(
    "url",
    [
        "redis://broker:hunter2/0",
        "redis://ann:hunter2",
        "redis://:hunter2@broker:99999/0",
        "redis://:hunter2@broker/0?db=first",
        "http://:hunter2@broker",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="redis_url") as error:
        WorkerSettings(data_dir=tmp_path, redis_url=url)
    assert "hunter2" not in str(error.value)
    assert error.value.error_count() == 1


@pytest.mark.parametrize(
    "url", ["", "redis://broker:6379/0", "rediss://:pass@[::1]:6380/1", "unix:///run/valkey.sock"]
)
def test_a_url_that_can_be_used_is_taken(url: str, tmp_path: Path) -> None:
    assert WorkerSettings(data_dir=tmp_path, redis_url=url).redis_url == url


def test_checkpoints_and_the_step_cache_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="does not go with MOCHI_STEP_CACHE") as error:
        WorkerSettings(data_dir=tmp_path, step_cache=0.1, checkpoint_steps=5)
    assert error.value.errors()[0]["loc"] == ("checkpoint_steps",)
    for alone in ({"step_cache": 0.1, "checkpoint_steps": 0}, {"checkpoint_steps": 5}):
        WorkerSettings(data_dir=tmp_path, **alone)
