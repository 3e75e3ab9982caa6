"""The labels of a classifier, and what follows from their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Labels:
    """What blocks, and from which probability on.

    Attributes:
        names: in the classifier's order.
        harmless: those that do not block, without regard to case.
        threshold: the probability of harm, above 0, from which on it blocks.
        is_one_of: whether exactly one label is right, so that probabilities add up. Otherwise each
            may be right or wrong, and the highest counts.
    """

    names: tuple[str, ...]
    harmless: frozenset[str]
    threshold: float
    is_one_of: bool = True

    @property
    def problem(self) -> str:
        """Why they can tell nothing apart; empty when they can."""
        harmful = [name for name in self.names if self._is_harmful(name)]
        listed = ", ".join(self.names)
        if not harmful:
            return f"all its labels ({listed}) are in MOCHI_MODERATION_HARMLESS"
        if self.is_one_of and len(harmful) == len(self.names):
            return f"none of its labels ({listed}) is in MOCHI_MODERATION_HARMLESS"
        return ""

    def blocks(self, probabilities: Sequence[float]) -> str | None:
        """The likeliest label that is harmful, when there is harm enough.

        Raises:
            ValueError: these are no probabilities. A comparison would let them pass.
        """
        if not all(map(math.isfinite, probabilities)):
            raise ValueError("The classifier has no answer: its numbers are not finite.")
        harm = {
            name: probability
            for name, probability in zip(self.names, probabilities, strict=True)
            if self._is_harmful(name)
        }
        total = sum(harm.values()) if self.is_one_of else max(harm.values())
        return None if total < self.threshold else max(harm, key=harm.__getitem__)

    def _is_harmful(self, name: str) -> bool:
        return name.casefold() not in self.harmless
