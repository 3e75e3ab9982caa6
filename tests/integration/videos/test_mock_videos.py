"""Videos of the mock weights, asked for with the SDK and opened with PyAV."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from fractions import Fraction

import av
import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray

from models.mock.scene import INSET
from models.request.example import EXAMPLE_REQUEST
from models.request.params import GenerateParams
from tests.support.stack import Stack


def make(server: Stack, **params: object) -> bytes:
    result = server.sdk().run("mochi-1", **{"prompt": "a pond", "steps": 10, **params})
    return httpx2.get(result["output"]).content


def frames_of(video: bytes) -> Iterator[av.VideoFrame]:
    with av.open(io.BytesIO(video), "r") as container:
        yield from container.decode(video=0)


def pixels_of(video: bytes) -> NDArray[np.uint8]:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames_of(video)])


@pytest.mark.parametrize(
    ("frames", "fps", "rate"),
    [
        (1, 7, Fraction(7)),
        (2, 23.976, Fraction(2997, 125)),
        (7, 30, Fraction(30)),
        (52, 16, Fraction(16)),
        (160, 23.976, Fraction(2997, 125)),
    ],
)
def test_a_video_has_exactly_the_frames_and_the_rate_that_were_asked_for(
    mock_server: Stack, frames: int, fps: float, rate: Fraction
) -> None:
    video = make(mock_server, frames=frames, fps=fps)
    with av.open(io.BytesIO(video), "r") as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (848, 480)
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == rate
        assert stream.frames == frames
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == pytest.approx(frames / rate)
        assert len(list(container.decode(stream))) == frames


def test_a_video_plays_while_it_loads(mock_server: Stack) -> None:
    video = make(mock_server, frames=7)
    assert 0 < video.index(b"moov") < video.index(b"mdat")


def test_a_video_says_that_it_is_mock_and_what_was_asked_for(mock_server: Stack) -> None:
    asked = GenerateParams(prompt="A red panda drinks tea", frames=8, fps=12.5, seed=77, steps=10)
    with av.open(io.BytesIO(make(mock_server, **asked.model_dump())), "r") as container:
        comment = json.loads(container.metadata["comment"])
    assert comment == {"mock": "mock weights"} | asked.model_dump()


def test_the_same_seed_gives_the_same_frames_and_another_does_not(mock_server: Stack) -> None:
    first, again, other = (pixels_of(make(mock_server, frames=7, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    left, top, right, bottom = INSET
    engines = (slice(None), slice(top, bottom), slice(left, right))
    assert not np.array_equal(first[engines], other[engines])


def test_a_result_says_in_what_precision_it_was_computed(mock_server: Stack) -> None:
    result = mock_server.sdk().run("mochi-1", prompt="a pond", frames=1, steps=10)
    assert result["precision"] == "float32"
    assert result["warnings"] == []


def test_the_times_of_the_api_pages_example_add_up(mock_server: Stack) -> None:
    result = mock_server.sdk().run("mochi-1", **EXAMPLE_REQUEST)
    metrics = result["metrics"]
    assert metrics["total_time"] == pytest.approx(
        metrics["queue_time"] + metrics["inference_time"], abs=0.002
    )
    assert len(pixels_of(httpx2.get(result["output"]).content)) == EXAMPLE_REQUEST["frames"]
