"""Weights that live in main memory and are copied to the device when they are needed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def pin(module: nn.Module) -> None:
    """Pin weights and buffers, if there is a GPU, so that it can copy them without the CPU."""
    if torch.cuda.is_available():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.pin_memory()


@contextmanager
def visit(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Hold the weights of `module` on `device` inside. They are never copied back.

    Those that live there are not touched: another thread may work with them.
    """
    home = [(each, each.data) for each in module.parameters() if each.device != device]
    try:
        for parameter, data in home:
            parameter.data = data.to(device, non_blocking=True)
        yield
    finally:
        for parameter, data in home:
            parameter.data = data


class StreamedBlocks:
    """Blocks in main memory that visit the device in turn: the next is copied while one works.

    The device holds two copies of a block. The weights go to them alternately, over a stream of
    their own. Iterating yields the copies; each is valid until the next is drawn.

    Attributes:
        with_buffers: whether the buffers are copied, too; at first not.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """Take over the blocks.

        Args:
            blocks: two or more of one structure, in main memory, in the order of work.
            device: where they work.
        """
        for block in blocks:
            pin(block)
        self.with_buffers = False
        self._homes = [_Tensors(block) for block in blocks]
        self._slots = [_Slot(copy.deepcopy(block).to(device)) for block in blocks[:2]]
        self._fetching: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._fetching = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def copies(self) -> list[nn.Module]:
        return [slot.block for slot in self._slots]

    def __iter__(self) -> Iterator[nn.Module]:
        self._fetch(0)
        for index in range(len(self._homes)):
            if index + 1 < len(self._homes):
                self._fetch(index + 1)
            slot = self._slots[index % 2]
            slot.wait_until_fetched()
            try:
                yield slot.block
            finally:  # also when the caller leaves early
                slot.release()

    def _fetch(self, index: int) -> None:
        home = self._homes[index].some(with_buffers=self.with_buffers)
        self._slots[index % 2].fetch(home, self._fetching)


class _Tensors:
    """The memory of a module's weights and buffers."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = [parameter.data for parameter in module.parameters()]
        self._buffers = [buffer.data for buffer in module.buffers()]

    def some(self, *, with_buffers: bool) -> list[Tensor]:
        return [*self._weights, *(self._buffers if with_buffers else ())]


class _Slot:
    """A block on the device whose weights change."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self._tensors = _Tensors(block).some(with_buffers=True)
        self._fetched: torch.cuda.Event | None = None
        self._released: torch.cuda.Event | None = None

    def fetch(self, home: list[Tensor], stream: torch.cuda.Stream | None) -> None:
        """Overwrite the weights as soon as the work on the present ones is done."""
        if stream is None:
            self._copy(home)
            return
        if self._released is not None:
            stream.wait_event(self._released)
        with torch.cuda.stream(stream):
            self._copy(home)
        self._fetched = stream.record_event()

    def wait_until_fetched(self) -> None:
        """Let the device, not this process, wait for the weights."""
        if self._fetched is not None:
            torch.cuda.current_stream().wait_event(self._fetched)

    def release(self) -> None:
        """Mark that all work on the present weights has been launched."""
        if self._fetched is not None:
            self._released = torch.cuda.current_stream().record_event()

    def _copy(self, home: list[Tensor]) -> None:
        # The weights are first; there may be no buffers in `home`.
        for tensor, source in zip(self._tensors, home, strict=False):
            tensor.copy_(source, non_blocking=True)
