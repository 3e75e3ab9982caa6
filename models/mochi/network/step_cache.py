"""Skips most blocks in a step that changes little, and reuses their last contribution.

Lossy, and off by default. Method: ParaAttention's "first block cache". The change in the first
block's contribution predicts the change in the others'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.mochi.network.ranks import ALONE


class StepCache:
    """The cache of one request: the last step at which all blocks ran.

    The other blocks are skipped while the first block's contribution changes by less than
    `threshold`: a share, as the mean over all tokens, channels and branches, also of other cards.
    """

    def __init__(self, threshold: float, total: Callable[[Tensor], Tensor] = ALONE.total) -> None:
        self._threshold = threshold
        self._total = total
        self._first: list[Tensor] = []
        self._rest: list[Tensor] = []
        self._after_first: list[Tensor] = []
        self.skipped = 0

    def guess(self, entered: Sequence[Tensor], after_first: Sequence[Tensor]) -> list[Tensor]:
        """Estimate the tokens after the last block; empty where all blocks have to run.

        Waits for the device, as the choice is made on the CPU.

        Args:
            entered: tokens before the first block, for each branch.
            after_first: tokens after it.
        """
        first = [after - before for before, after in zip(entered, after_first, strict=True)]
        if self._rest and self._change(first) < self._threshold:
            self.skipped += 1
            return [after + rest for after, rest in zip(after_first, self._rest, strict=True)]
        self._first, self._after_first = first, list(after_first)
        return []

    def keep(self, final: Sequence[Tensor]) -> None:
        """Note the tokens after the last block; all blocks have run."""
        self._rest = [end - after for after, end in zip(self._after_first, final, strict=True)]
        self._after_first = []

    def _change(self, first: Sequence[Tensor]) -> float:
        both = zip(first, self._first, strict=True)
        changes = torch.stack([(new - old).abs().float().sum() for new, old in both]).sum()
        sizes = torch.stack([old.abs().float().sum() for old in self._first]).sum()
        difference, size = self._total(torch.stack((changes, sizes)))
        return float(difference / size)
