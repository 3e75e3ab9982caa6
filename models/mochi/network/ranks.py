"""What cards that share a video exchange. A single card exchanges nothing, and has no cost.

A group of cards splits first by the two branches of guidance, then each branch by visual tokens:
rank = branch * shares + share. The text is small, and each card of a branch has all of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore
from torch.nn import functional
from typing_extensions import override

from models.mochi.network.attention import attend_jointly
from models.mochi.network.text_encoder import Prompt

T = TypeVar("T")

BRANCHES = 2
"""Of guidance: away from the negative prompt, and towards the prompt."""

PAST = 2
"""Frames that a convolution of the VAE looks back: its length in time minus one."""


class Ranks:
    """A single card: all branches and tokens are its own.

    Attributes:
        rank: of this process, from 0.
        cards: that share each video.
        shares: cards of each branch.
        agree: waits until all cards begin the next round of a decoding; may raise.
    """

    rank = 0
    cards = 1
    shares = 1
    agree: Callable[[], None] = staticmethod(lambda: None)

    def least(self, value: float) -> float:
        """The least value of all cards."""
        return value

    @property
    def encodes(self) -> bool:
        """Whether this card encodes prompts: rank 0 does for its group."""
        return self.rank == 0

    def prompt(self, text: str, encode: Callable[[str], Prompt]) -> Prompt:
        """Encode a prompt, or get it from the card that `encodes`."""
        return encode(text)

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

    def chunks(self, latents: Tensor, longest: int) -> Iterator[Tensor]:
        """Of latents, `(1, channels, T, h, w)`, the chunks that this card decodes.

        The remainder comes first, so that only first chunks need graphs of several lengths.
        """
        length = latents.shape[2]
        for end in range((length - 1) % longest + 1, length + 1, longest):
            yield latents[:, :, max(end - longest, 0) : end]

    def collect(self, frames: Tensor) -> Tensor:
        """Decoded frames, `(frames, height, width, 3)`, of all cards in order, on rank 0."""
        return frames


ALONE = Ranks()


def join_group(rank: int, size: int, rendezvous: Path, device: torch.device) -> GroupRanks:
    """Meet the other processes of a group on this machine.

    Args:
        rank: of this process, from 0.
        size: of the group, even.
        rendezvous: a file, empty or not there yet, that no other user can write. With it no port
            listens.
        device: the current device of this process.
    """
    loopback = "lo" if sys.platform == "linux" else "lo0"
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=FileStore(str(rendezvous), size),
        rank=rank,
        world_size=size,
        device_id=device if device.type == "cuda" else None,
    )
    return GroupRanks(device)


class GroupRanks(Ranks):
    """A card of a group, over torch's default process group: NCCL, or gloo on CPUs.

    Inside a branch this is Ulysses: between two collectives each card has all tokens, and its
    share of the heads. All cards of a group call the same methods in the same order.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.rank = dist.get_rank()
        self.cards = dist.get_world_size()
        self.shares = self.cards // BRANCHES
        self._branch, self._number = divmod(self.rank, self.shares)
        if self.shares > 1:  # otherwise a card is alone in its branch
            branches = [
                dist.new_group([branch * self.shares + number for number in range(self.shares)])
                for branch in range(BRANCHES)
            ]
            self._own_branch = branches[self._branch]
        self._counts: list[int] = []

    @override
    def least(self, value: float) -> float:
        least = torch.tensor(value, device=self._device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return float(least)

    @override
    def prompt(self, text: str, encode: Callable[[str], Prompt]) -> Prompt:
        tokens, embedding = 0, torch.empty(0, 0, device=self._device)
        if self.encodes:
            prompt = encode(text)
            # In float32, which holds bfloat16 exactly.
            tokens, embedding = prompt.tokens, prompt.embedding.to(self._device).float()
        sizes = torch.tensor([tokens, *embedding.shape], device=self._device)
        dist.broadcast(sizes, 0)
        tokens, *shape = sizes.tolist()
        if not self.encodes:
            embedding = torch.empty(shape, device=self._device)
        dist.broadcast(embedding, 0)
        return Prompt(embedding, tokens)

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
            _join_heads(self._to_heads(_split_heads(visual))),
            _join_heads([part[:, :, own] for part in _split_heads(text)]),
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

    @override
    def chunks(self, latents: Tensor, longest: int) -> Iterator[Tensor]:
        """In each round, the cards decode neighbouring chunks of equal length.

        The last frame is repeated to fill the last round. That changes no frame before it, as the
        decoder only looks back, and takes no longer.
        """
        cards = self.cards
        *_, length, _, _ = latents.shape
        start, chunk = 0, -(-((length - 1) % (cards * longest) + 1) // cards)
        while start < length:
            self.agree()
            own = start + self.rank * chunk + torch.arange(chunk, device=latents.device)
            yield latents[:, :, own.clamp(max=length - 1)]
            start, chunk = start + cards * chunk, longest

    def past(self, own: Tensor, kept: Tensor | None) -> Tensor:
        """The frames before the input of a convolution.

        Each card gets them from the card before it, and rank 0 from the last one, a round ago.

        Args:
            own: the input, `(1, frames, height, width, channels)`.
            kept: the last `PAST` frames of this card in the round before, with those before its
                input. None in the first round, where rank 0 repeats its first frame.
        """
        is_first, is_last = self.rank == 0 and kept is None, self.rank == self.cards - 1
        first = own[:, :1].expand(-1, PAST, -1, -1, -1)
        given = own[:, -PAST:]
        if is_last:  # nothing is kept in the first round, and rank 0 ignores what it gets
            given = first if kept is None else kept
        if own.shape[1] >= PAST:
            received = self._pass_on(given)
            return first if is_first else received
        # One of the two frames is of the card before that one.
        received = self._pass_on(given[:, -1:])
        latest = first[:, -1:] if is_first else received
        other = self._pass_on(given[:, :1] if is_last else latest)
        return first if is_first else torch.cat((other, latest), dim=1)

    def _pass_on(self, frames: Tensor) -> Tensor:
        """Give frames to the next card, and return those of the one before."""
        cards = self.cards
        sent = frames.contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(
            received,
            sent,
            [int(rank == (self.rank - 1) % cards) for rank in range(cards)],
            [int(rank == (self.rank + 1) % cards) for rank in range(cards)],
        )
        return received

    @override
    def collect(self, frames: Tensor) -> Tensor:
        count, cards = len(frames), self.cards
        gathered = frames.new_empty(0 if self.rank else cards * count, *frames.shape[1:])
        gets = [0 if self.rank else count] * cards
        gives = [count] + [0] * (cards - 1)
        dist.all_to_all_single(gathered, frames.contiguous(), gets, gives)
        return gathered


def _split_heads(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Give the value, the last of the arguments of `attend`, the shape of the key."""
    *others, value = parts
    return *others, value.view_as(others[-1])


def _join_heads(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    *others, value = parts
    return *others, value[0].flatten(1)
