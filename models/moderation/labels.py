"""The labels of a classifier, and which of them block at which probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Labels:
    """The labels and the threshold of a classifier.

    Attributes:
        names: in the classifier's order.
        harmless: labels that do not block, casefolded; all others do.
        threshold: the lowest probability of harm that blocks, above 0.
        is_one_of: whether exactly one label applies, so that probabilities of harm add up.
            Otherwise labels are independent, and the highest probability counts.
    """

    names: tuple[str, ...]
    harmless: frozenset[str]
    threshold: float
    is_one_of: bool = True

    @property
    def problem(self) -> str:
        """Why these labels cannot tell harm from no harm; empty when they can."""
        harmful = [name for name in self.names if self._is_harmful(name)]
        listed = ", ".join(self.names)
        if not harmful:
            return f"all its labels ({listed}) are in MOCHI_MODERATION_HARMLESS"
        if self.is_one_of and len(harmful) == len(self.names):
            return f"none of its labels ({listed}) is in MOCHI_MODERATION_HARMLESS"
        return ""

    def blocks(self, probabilities: Sequence[float]) -> str | None:
        """The likeliest harmful label, if the probability of harm reaches the threshold.

        Raises:
            ValueError: a probability is not finite. A comparison would let it pass.
        """
        if not all(map(math.isfinite, probabilities)):
            raise ValueError("The classifier has no answer: its probabilities are not finite.")
        harm = {
            name: probability
            for name, probability in zip(self.names, probabilities, strict=True)
            if self._is_harmful(name)
        }
        total = sum(harm.values()) if self.is_one_of else max(harm.values())
        return None if total < self.threshold else max(harm, key=harm.__getitem__)

    def _is_harmful(self, name: str) -> bool:
        return name.casefold() not in self.harmless
