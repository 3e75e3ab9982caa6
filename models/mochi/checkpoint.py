"""Saves the latents of a request between two steps, so that a later run can resume from there.

A step depends on the one before through the latents alone, so a resumed run gives the same frames
to the byte where its kernels are the same. Card, versions and options are in the seal; what the
compiler has tuned on its host is not, and can change the last bits.

Only safetensors with the seal of the same request are parsed.
"""

from __future__ import annotations

import hashlib

import torch
from safetensors.torch import load, save
from torch import Tensor

from models.engine import Checkpoints, is_checkpoint_due

FORMAT = 2
"""Increase this when the bytes, or what a step computes, change: older checkpoints are ignored."""

_SEAL_BYTES = 32


class LatentsKeeper:
    """Saves and restores the latents of one request.

    Its `identity` names everything that the latents after a step depend on.
    """

    def __init__(
        self, checkpoints: Checkpoints, identity: str, steps: int, stop_after: int | None = None
    ) -> None:
        self._checkpoints = checkpoints
        self._identity = f"{FORMAT} {identity}".encode()
        self._steps = steps
        self._stop_after = stop_after

    def resume(self, noise: Tensor) -> tuple[int, Tensor]:
        """Return the steps done and the latents after them; 0 and the noise without a checkpoint.

        The seal is a hash of the bytes and the identity, so it also rejects damaged bytes and
        another request's.
        """
        data = self._checkpoints.load() or b""
        seal, kept = data[:_SEAL_BYTES], data[_SEAL_BYTES:]
        if seal != self._seal(kept):
            return 0, noise
        tensors = load(kept)
        step = int(tensors["step"])
        if self._stop_after is not None and step >= self._stop_after:
            return 0, noise  # a draft shows the velocity of its last step, which has to run again
        self._checkpoints.resumed(step)
        return step, tensors["latents"].to(noise.device)

    def keep(self, step: int, latents: Tensor) -> None:
        """Save the latents if a checkpoint is due after this step; that waits for the device."""
        if not is_checkpoint_due(step, self._steps, self._checkpoints.every, self._stop_after):
            return
        kept = save({"step": torch.tensor(step), "latents": latents.cpu().contiguous()})
        self._checkpoints.save(self._seal(kept) + kept)

    def _seal(self, kept: bytes) -> bytes:
        inner = hashlib.sha256(self._identity).digest()  # of a fixed length, whatever the prompt
        return hashlib.sha256(inner + kept).digest()
