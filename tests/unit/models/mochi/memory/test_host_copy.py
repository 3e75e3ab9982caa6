from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from models.mochi.memory import host_copy as frames
from models.mochi.memory.host_copy import HostCopy, to_host

LENGTHS = (1, 3, 3, 3)


@pytest.fixture
def log() -> list[str]:
    return []


def decode(log: list[str], device: str = "cpu") -> Iterator[Tensor]:
    """Chunks of frames whose bytes are all the frame's number."""
    start = 0
    for number, length in enumerate(LENGTHS):
        log.append(f"chunk {number}")
        values = torch.arange(start, start + length, dtype=torch.uint8, device=device)
        yield values[:, None, None, None].expand(-1, 2, 4, 3).contiguous()
        start += length
    log.append("end")


def number_of(frame: bytes) -> int:
    assert len(frame) == 2 * 4 * 3
    [number] = set(frame)
    return number


@pytest.mark.parametrize("wanted", range(1, sum(LENGTHS) + 1))
def test_exactly_the_frames_wanted_come_in_order(log: list[str], wanted: int) -> None:
    assert [number_of(frame) for frame in to_host(decode(log), wanted)] == list(range(wanted))


def test_rows_and_channels_keep_their_order() -> None:
    chunk = torch.arange(2 * 2 * 4 * 3, dtype=torch.uint8).view(2, 2, 4, 3)
    assert b"".join(to_host(iter([chunk]), 2)) == bytes(range(2 * 2 * 4 * 3))


def test_a_chunk_is_asked_for_before_the_frames_of_the_one_before_are_given_out(
    log: list[str],
) -> None:
    for frame in to_host(decode(log), sum(LENGTHS)):
        log.append(f"frame {number_of(frame)}")  # noqa: PERF401 (the decoder appends, too)
    assert log == [
        *("chunk 0", "chunk 1", "frame 0"),
        *("chunk 2", "frame 1", "frame 2", "frame 3"),
        *("chunk 3", "frame 4", "frame 5", "frame 6"),
        *("frame 7", "frame 8", "frame 9"),
    ]


@pytest.mark.parametrize(("wanted", "chunks"), [(1, 1), (2, 2), (4, 2), (5, 3), (10, 4)])
def test_no_chunk_is_asked_for_that_is_not_needed(log: list[str], wanted: int, chunks: int) -> None:
    list(to_host(decode(log), wanted))
    assert log == [f"chunk {number}" for number in range(chunks)]


def test_nothing_is_asked_for_before_the_first_frame_is_drawn(log: list[str]) -> None:
    to_host(decode(log), 5)
    assert log == []


def test_it_is_an_error_if_frames_are_missing(log: list[str]) -> None:
    with pytest.raises(ValueError, match="The last 2 frames are missing"):
        list(to_host(decode(log), sum(LENGTHS) + 2))


def test_an_error_in_the_decoder_comes_through(log: list[str]) -> None:
    def broken() -> Iterator[Tensor]:
        yield from islice(decode(log), 2)
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        list(to_host(broken(), 10))


def test_the_decoder_is_let_go_when_frames_are_abandoned(log: list[str]) -> None:
    source: Any = decode(log)
    gone = weakref.ref(source)
    pictures: Any = to_host(source, 10)
    del source
    next(pictures)
    pictures.close()
    gc.collect()
    assert gone() is None


def test_two_chunks_at_most_are_in_main_memory(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[CountedCopy] = weakref.WeakSet()
    counts: list[int] = []

    class CountedCopy(HostCopy):
        def __init__(self, chunk: Tensor) -> None:
            super().__init__(chunk)
            alive.add(self)
            counts.append(len(alive))

    monkeypatch.setattr(frames, "HostCopy", CountedCopy)
    list(to_host(decode(log), sum(LENGTHS)))
    assert counts == [1, 2, 2, 2]


# What only a GPU can show. That it decodes in the meantime is for a profiler to say.


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_frames_from_a_gpu_are_complete_when_they_are_given_out(log: list[str]) -> None:
    def slow() -> Iterator[Tensor]:
        for chunk in decode(log, "cuda"):
            torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]
            yield chunk + 0  # after the sleep, on the device

    assert [number_of(frame) for frame in to_host(slow(), 10)] == list(range(10))
