"""The way of decoded frames to main memory, during which the device decodes the next ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_host(chunks: Iterator[Tensor], wanted: int) -> Iterator[bytes]:
    """Bring frames to main memory.

    A chunk is asked for before the frames of the one before it are waited for: so a GPU, where to
    ask is to launch kernels, decodes while the consumer is busy with frames.

    Args:
        chunks: (frames, height, width, 3), uint8, on any device. No more are asked for than hold
            `wanted` frames.
        wanted: number of frames, 1 or more.

    Returns:
        Yields `wanted` frames, each `height * width * 3` bytes.

    Raises:
        ValueError: the chunks ended before.
    """
    copies = _copies(chunks, wanted)
    copy = next(copies, None)
    while copy is not None:
        following = next(copies, None)
        yield from copy.frames()
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
    """A chunk on its way to main memory; on a CPU it is there already.

    Pinned memory is slow to allocate, but torch keeps what is released, for copies yet to come, and
    gives it out again only when the copies to it are done.
    """

    def __init__(self, chunk: Tensor) -> None:
        self._host = chunk
        self._done: torch.cuda.Event | None = None
        if chunk.is_cuda:
            self._host = torch.empty_like(chunk, device="cpu", pin_memory=True)
            self._host.copy_(chunk, non_blocking=True)
            # Blocking means to sleep while waiting, and so to leave the CPU to the consumer.
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._done.record(torch.cuda.current_stream(chunk.device))

    def is_done(self) -> bool:
        """Whether it has arrived."""
        return self._done is None or self._done.query()  # type: ignore[no-untyped-call]

    def arrays(self) -> Iterator[np.ndarray[Any, Any]]:
        """The same as `frames`, for one who wants more than bytes."""
        if self._done is not None:
            self._done.synchronize()
        for frame in self._host:
            yield frame.numpy()

    def frames(self) -> Iterator[bytes]:
        """Wait for the copy, then give out its frames."""
        for frame in self.arrays():
            yield frame.tobytes()
