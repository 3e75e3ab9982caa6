"""What the latents of a request look like on their way: small pictures, without the VAE.

Colours are a linear function of the latents, nearly. It is fitted to the decoder that is loaded, so
that it goes with any weights, and is evaluated where the latents are, for a frame in the middle.
"""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from models.engine import Picture, Previews
from models.mochi.memory.host_copy import HostCopy
from models.mochi.network.vae import Decoder

QUALITY = 80
"""Of the JPEG: two or three kB."""

_SEED = 1
_ROUNDS = 8
_PATCH = 2
"""Latents in a row of one value: those of pictures resemble their neighbours."""


@torch.no_grad()
def fit_colours(decoder: Decoder, device: torch.device, width: int, height: int) -> Tensor:
    """What makes RGB from 0 to 1 of latents and a one: float32, `(channels + 1, 3)`.

    Least squares over patches of noise and what the decoder makes of them.

    Args:
        decoder: not compiled yet: it would be for single frames, too.
        device: its own.
        width: of the latents to try it with, 2 or more.
        height: the same.
    """
    generator = torch.Generator().manual_seed(_SEED)
    rows, columns = height // _PATCH, width // _PATCH
    inputs, outputs = [], []
    for _ in range(_ROUNDS):
        patches = torch.randn((1, decoder.channels, rows, columns), generator=generator)
        latents = functional.interpolate(patches, scale_factor=_PATCH).to(device)
        picture = next(decoder.decode(latents[:, :, None]))[0].permute(2, 0, 1).float().cpu() / 255
        inputs.append(_with_one(patches[0]).flatten(0, 1))
        colours = functional.adaptive_avg_pool2d(picture, (rows, columns))
        outputs.append(colours.permute(1, 2, 0).flatten(0, 1))
    fitted: Tensor = torch.linalg.lstsq(torch.cat(inputs), torch.cat(outputs)).solution
    return fitted.to(device)


class Previewer:
    """Shows the latents of one request, and never waits for the device."""

    def __init__(self, previews: Previews, colours: Tensor, steps: int) -> None:
        self._previews = previews
        self._colours = colours
        self._steps = steps
        self._on_its_way: tuple[int, HostCopy] | None = None

    def look(self, step: int, latents: Tensor, velocity: Tensor, left: float) -> None:
        """After each step.

        Args:
            step: steps done.
            latents: after this step, `(1, channels, T, h, w)`.
            velocity: in it.
            left: how far along the velocity the video would be, if it stayed the same.
        """
        self._show_what_has_come()
        if step % self._previews.every or step == self._steps:
            return
        middle = latents.shape[2] // 2
        foreseen = latents[0, :, middle].float() + left * velocity[0, :, middle].float()
        colours = (_with_one(foreseen) @ self._colours).clamp(0, 1).mul(255).to(torch.uint8)
        self._on_its_way = step, HostCopy(colours[None])

    def _show_what_has_come(self) -> None:
        if self._on_its_way is None or not self._on_its_way[1].is_done():
            return
        step, copy = self._on_its_way
        self._on_its_way = None
        file = io.BytesIO()
        (pixels,) = copy.arrays()
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        self._previews.show(Picture(step, "image/jpeg", file.getvalue()))


def _with_one(latents: Tensor) -> Tensor:
    """(channels, rows, columns) to (rows, columns, channels + 1)."""
    one = torch.ones_like(latents[:1])
    return torch.cat([latents, one]).permute(1, 2, 0)
