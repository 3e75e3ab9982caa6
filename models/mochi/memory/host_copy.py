"""Copies decoded frames to main memory while the device decodes the next ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_host(chunks: Iterator[Tensor], wanted: int) -> Iterator[bytes]:
    """Copy frames to main memory.

    The next chunk is drawn before this one's copy is waited for. On a GPU, drawing launches
    kernels, so the GPU decodes while the consumer works on frames.

    Args:
        chunks: (frames, height, width, 3), uint8, on any device. Only as many are drawn as hold
            `wanted` frames.
        wanted: number of frames, 1 or more.

    Returns:
        Yields `wanted` frames, each `height * width * 3` bytes.

    Raises:
        ValueError: the chunks hold fewer frames.
    """
    copies = _copies(chunks, wanted)
    copy = next(copies, None)
    while copy is not None:
        following = next(copies, None)
        yield from (frame.tobytes() for frame in copy.frames())
        copy = following


def _copies(chunks: Iterator[Tensor], wanted: int) -> Iterator[HostCopy]:
    while wanted > 0:
        chunk = next(chunks, None)
        if chunk is None:
            raise ValueError(f"The last {wanted} frames are missing.")
        chunk = chunk[:wanted]
        wanted -= len(chunk)
        yield HostCopy(chunk)


class HostCopy:
    """The copy of a chunk to main memory; on a CPU it is the chunk itself.

    Pinned memory is slow to allocate. Torch keeps what is released for later copies, and reuses it
    only once the copies to it are done.
    """

    def __init__(self, chunk: Tensor) -> None:
        self._host = chunk
        self._done: torch.cuda.Event | None = None
        if chunk.is_cuda:
            self._host = torch.empty_like(chunk, device="cpu", pin_memory=True)
            self._host.copy_(chunk, non_blocking=True)
            # A blocking event lets the waiting thread sleep, and leaves the CPU to the consumer.
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._done.record(torch.cuda.current_stream(chunk.device))

    def is_done(self) -> bool:
        return self._done is None or self._done.query()  # type: ignore[no-untyped-call]

    def frames(self) -> Iterator[np.ndarray[Any, Any]]:
        """Wait for the copy, then yield its frames, each (height, width, 3)."""
        if self._done is not None:
            self._done.synchronize()
        for frame in self._host:
            yield frame.numpy()
