"""The latents of a request between two steps, as bytes from which a later run goes on.

A step reads nothing else of the one before, so the frames are those of an undisturbed run, to the
byte. Only safetensors are parsed, and only those that a run of the same request has sealed.
"""

from __future__ import annotations

import hashlib

import torch
from safetensors.torch import load, save
from torch import Tensor

from models.engine import Checkpoints

FORMAT = 1
"""Counts up when the bytes, or what a step computes, change: older ones are not taken then."""

_SEAL_BYTES = 32


class LatentsKeeper:
    """Keeps and brings back the latents of one request."""

    def __init__(self, checkpoints: Checkpoints, identity: str, steps: int) -> None:
        """Bind a request.

        Args:
            checkpoints: where the bytes go.
            identity: all that the latents after a step depend on.
            steps: of the request.
        """
        self._checkpoints = checkpoints
        self._identity = f"{FORMAT} {identity}".encode()
        self._steps = steps

    def resume(self, noise: Tensor) -> tuple[int, Tensor]:
        """Where to go on: steps done and the latents after them; 0 and the noise if nothing fits.

        The bytes fit as a whole or not at all: their seal is a hash of themselves and of the
        identity, so that damage is told as well as another request.
        """
        data = self._checkpoints.load() or b""
        seal, kept = data[:_SEAL_BYTES], data[_SEAL_BYTES:]
        if seal != self._seal(kept):
            return 0, noise
        tensors = load(kept)
        step = int(tensors["step"])
        self._checkpoints.resumed(step)
        return step, tensors["latents"].to(noise.device)

    def keep(self, step: int, latents: Tensor) -> None:
        """Keep the latents after a step, if it is one of those. Waits for the device then."""
        if step % self._checkpoints.every or step == self._steps:
            return
        kept = save({"step": torch.tensor(step), "latents": latents.cpu().contiguous()})
        self._checkpoints.save(self._seal(kept) + kept)

    def _seal(self, kept: bytes) -> bytes:
        inner = hashlib.sha256(self._identity).digest()  # of a fixed length, whatever a prompt says
        return hashlib.sha256(inner + kept).digest()
