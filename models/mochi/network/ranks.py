"""What cards that share a video exchange. A single card exchanges nothing, and has no cost.

A group of cards splits first by the two branches of guidance, then each branch by visual tokens:
rank = branch * shares + share. The text is small, and each card of a branch has all of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore
from torch.nn import functional
from typing_extensions import override

from models.mochi.network.attention import attend_jointly

T = TypeVar("T")

BRANCHES = 2
"""Of guidance: away from the negative prompt, and towards the prompt."""


class Ranks:
    """A single card: all branches and tokens are its own.

    Attributes:
        rank: of this process, from 0.
        shares: cards of each branch.
    """

    rank = 0
    shares = 1

    def branches(self, both: Sequence[T]) -> Sequence[T]:
        """Of one item for each branch, those of this card."""
        return both

    def share(self, tokens: Tensor) -> Tensor:
        """Of all visual tokens, `(N, ...)`, those of this card."""
        return tokens

    def gather(self, patches: Sequence[Tensor]) -> Sequence[Tensor]:
        """Of the own branches and tokens, `(n, channels)`, to all branches and tokens."""
        return patches

    def total(self, value: Tensor) -> Tensor:
        """The sum over all branches and tokens, of the sum over the own."""
        return value

    def from_first(self, step: int, latents: Tensor) -> tuple[int, Tensor]:
        """Where rank 0 begins: it alone reads checkpoints."""
        return step, latents

    def attend(self, visual: Sequence[Tensor], text: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See `attend_jointly`; `visual` has the tokens of this card."""
        return attend_jointly(visual, text)


ALONE = Ranks()


def join_group(rank: int, size: int, meeting: Path, device: torch.device) -> GroupRanks:
    """Meet the other processes of a group on this machine.

    Args:
        rank: of this process, from 0.
        size: of the group, even.
        meeting: a file that does not exist yet, in a private folder. With it no port listens.
        device: the current device of this process.
    """
    loopback = "lo" if sys.platform == "linux" else "lo0"
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=FileStore(str(meeting), size),
        rank=rank,
        world_size=size,
        device_id=device if device.type == "cuda" else None,
    )
    return GroupRanks()


class GroupRanks(Ranks):
    """A card of a group, over torch's default process group: NCCL, or gloo on CPUs.

    Inside a branch this is Ulysses: between two collectives each card has all tokens, and its
    share of the heads. All cards of a group call the same methods in the same order.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.shares = dist.get_world_size() // BRANCHES
        self._branch, self._number = divmod(self.rank, self.shares)
        branches = [
            dist.new_group([branch * self.shares + number for number in range(self.shares)])
            for branch in range(BRANCHES)
        ]
        self._own_branch = branches[self._branch]
        self._counts: list[int] = []

    @override
    def branches(self, both: Sequence[T]) -> Sequence[T]:
        return both[self._branch : self._branch + 1]

    @override
    def share(self, tokens: Tensor) -> Tensor:
        """Also notes the number of tokens, which `gather` and `attend` need."""
        shares = tokens.tensor_split(self.shares)
        self._counts = list(map(len, shares))
        return shares[self._number]

    @override
    def gather(self, patches: Sequence[Tensor]) -> Sequence[Tensor]:
        (own,) = patches
        longest = max(self._counts)  # shares differ by one at most, and collectives want them equal
        padded = functional.pad(own, (0, 0, 0, longest - len(own)))
        gathered = own.new_empty(BRANCHES, self.shares, *padded.shape)
        dist.all_gather(list(gathered.flatten(0, 1)), padded)
        return [
            torch.cat([share[:count] for share, count in zip(branch, self._counts, strict=True)])
            for branch in gathered
        ]

    @override
    def total(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value

    @override
    def from_first(self, step: int, latents: Tensor) -> tuple[int, Tensor]:
        first = torch.tensor(step, device=latents.device)
        dist.broadcast(first, 0)
        latents = latents.contiguous()
        dist.broadcast(latents, 0)
        return int(first), latents

    @override
    def attend(self, visual: Sequence[Tensor], text: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        _, tokens, heads, _ = visual[0].shape  # `heads` is a multiple of `shares`
        own = slice(self._number * heads // self.shares, (self._number + 1) * heads // self.shares)
        all_tokens, own_text = attend_jointly(
            self._to_heads(visual), [part[:, :, own] for part in text]
        )
        rows = self._to_tokens(all_tokens[0], own_text[0], tokens)
        # Two copies: blocks would be compiled anew for each offset of a view.
        return rows[:tokens].flatten(1)[None], rows[tokens:].flatten(1)[None]

    def _to_heads(self, visual: Sequence[Tensor]) -> Sequence[Tensor]:
        """From own tokens and all heads, `(1, n, heads, head_dim)`, to all tokens, own heads."""
        shape = (len(visual[0][0]), self.shares, -1, visual[0].shape[3])
        parts = [part[0].reshape(shape).transpose(0, 1) for part in visual]
        sent = torch.stack(parts, dim=2).flatten(0, 1)
        received = sent.new_empty(sum(self._counts), *sent.shape[1:])
        self._exchange(received, self._counts, sent, [len(sent) // self.shares] * self.shares)
        return received[None].unbind(2)

    def _to_tokens(self, visual: Tensor, text: Tensor, tokens: int) -> Tensor:
        """From all tokens and own heads, `(N, channels)`, to `(n + L, shares, channels)`.

        The text goes along: each card gets all of it, after its own tokens.
        """
        shares = torch.split(visual, self._counts)
        parts = [part for share in shares for part in (share, text)]
        rows = tokens + len(text)
        received = visual.new_empty(self.shares * rows, visual.shape[1])
        self._exchange(
            received,
            [rows] * self.shares,
            torch.cat(parts),
            [count + len(text) for count in self._counts],
        )
        return received.view(self.shares, rows, -1).transpose(0, 1)

    def _exchange(self, received: Tensor, gets: list[int], sent: Tensor, gives: list[int]) -> None:
        dist.all_to_all_single(received, sent, gets, gives, group=self._own_branch)
