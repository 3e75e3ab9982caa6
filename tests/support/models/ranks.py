"""Groups of processes that share a video over gloo, as forks of the test process."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from models.mochi.network.ranks import GroupRanks, join_group

_context = multiprocessing.get_context("fork")  # torch is loaded already


class Group:
    """A group that serves one call after another, with one thread each."""

    def __init__(self, connections: list[Connection[Any, Any]]) -> None:
        self._connections = connections

    @property
    def size(self) -> int:
        return len(self._connections)

    def __call__(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> list[Any]:
        """Call `function(ranks, *arguments, **named)` in each process; the results, by rank."""
        for connection in self._connections:
            connection.send((function, arguments, named))
        answers = [connection.recv() for connection in self._connections]
        failures = "\n".join(answer for failed, answer in answers if failed)
        assert not failures, failures
        return [answer for _, answer in answers]


@contextmanager
def group_of(size: int) -> Iterator[Group]:
    """Start a group, and end it."""
    pipes = [_context.Pipe() for _ in range(size)]
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks where there are threads
        rendezvous = Path(stack.enter_context(TemporaryDirectory())) / "rendezvous"
        processes = [
            _context.Process(
                target=_serve, args=(rank, size, rendezvous, [end for _, end in pipes])
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        try:
            yield Group([end for end, _ in pipes])
        finally:
            for own, _ in pipes:
                own.send(None)
            for process in processes:
                process.join()


def _serve(rank: int, size: int, rendezvous: Path, ends: list[Connection[Any, Any]]) -> None:
    torch.set_num_threads(1)
    ranks: GroupRanks = join_group(rank, size, rendezvous, torch.device("cpu"))
    while (asked := ends[rank].recv()) is not None:
        function, arguments, named = asked
        try:
            answer = (False, function(ranks, *arguments, **named))
        except Exception:  # noqa: BLE001 (the test shows it)
            answer = (True, traceback.format_exc())
        ends[rank].send(answer)
    dist.destroy_process_group()
