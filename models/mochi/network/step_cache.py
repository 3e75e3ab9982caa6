"""First-block cache: where a step changes little, reuse what most blocks did in the one before.

Lossy, and off unless asked for. After the method of ParaAttention's "first block cache": the
change that the first block makes tells how much the others would change.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class StepCache:
    """Of one request. Knows the last step at which all blocks ran."""

    def __init__(self, threshold: float) -> None:
        """Start empty.

        Args:
            threshold: relative change of the first block's contribution, mean over all tokens,
                channels and branches, below which the other blocks are skipped.
        """
        self._threshold = threshold
        self._first: list[Tensor] = []
        self._rest: list[Tensor] = []
        self._after_first: list[Tensor] = []
        self.skipped = 0

    def guess(self, entered: Sequence[Tensor], after_first: Sequence[Tensor]) -> list[Tensor]:
        """The tokens after the last block, guessed; empty where all blocks have to run.

        Waits for the device: the choice is made on the CPU.

        Args:
            entered: tokens before the first block, for each branch.
            after_first: tokens after it.
        """
        first = [after - before for before, after in zip(entered, after_first, strict=True)]
        if self._rest and _change(self._first, first) < self._threshold:
            self.skipped += 1
            return [after + rest for after, rest in zip(after_first, self._rest, strict=True)]
        self._first, self._after_first = first, list(after_first)
        return []

    def keep(self, final: Sequence[Tensor]) -> None:
        """All blocks have run, with these tokens after the last."""
        self._rest = [end - after for after, end in zip(self._after_first, final, strict=True)]
        self._after_first = []


def _change(old: Sequence[Tensor], new: Sequence[Tensor]) -> float:
    difference = sum((a - b).abs().float().mean() for a, b in zip(new, old, strict=True))
    size = sum(a.abs().float().mean() for a in old)
    return float(difference / size)
