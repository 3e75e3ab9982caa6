"""Small preview pictures of a request's latents, without the VAE.

Colours are nearly a linear function of the latents. It is fitted to the loaded decoder, so it suits
any weights. It is evaluated on the latents' device, for the middle frame.
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
"""Of the JPEG, which has two or three kB."""

_SEED = 1
_ROUNDS = 8
_PATCH = 2
"""Side of a square of equal latents, as neighbours in a picture resemble each other."""


@torch.no_grad()
def fit_colours(decoder: Decoder, device: torch.device, width: int, height: int) -> Tensor:
    """Fit a linear map from latents to RGB, by least squares over decoded patches of noise.

    Args:
        decoder: not compiled yet, so that it is not compiled for single frames.
        device: of the decoder.
        width: of the latents to decode, 2 or more.
        height: the same.

    Returns:
        float32 `(channels + 1, 3)`: maps the latents of a pixel and a one to RGB from 0 to 1.
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
    """Shows the latents of one request without waiting for the device."""

    def __init__(self, previews: Previews, colours: Tensor, steps: int) -> None:
        self._previews = previews
        self._colours = colours
        self._steps = steps
        self._pending: tuple[int, HostCopy] | None = None

    def look(self, step: int, latents: Tensor, velocity: Tensor, left: float) -> None:
        """Show the last picture if it has arrived, and take the next if it is due.

        Args:
            step: steps done.
            latents: after this step, `(1, channels, T, h, w)`.
            velocity: of this step.
            left: how far along the velocity the video would be if the velocity stayed the same.
        """
        self._show_pending()
        if step % self._previews.every or step == self._steps:
            return
        middle = latents.shape[2] // 2
        foreseen = latents[0, :, middle].float() + left * velocity[0, :, middle].float()
        colours = (_with_one(foreseen) @ self._colours).clamp(0, 1).mul(255).to(torch.uint8)
        self._pending = step, HostCopy(colours[None])

    def _show_pending(self) -> None:
        if self._pending is None or not self._pending[1].is_done():
            return
        step, copy = self._pending
        self._pending = None
        file = io.BytesIO()
        (pixels,) = copy.frames()
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        self._previews.show(Picture(step, "image/jpeg", file.getvalue()))


def _with_one(latents: Tensor) -> Tensor:
    """(channels, rows, columns) to (rows, columns, channels + 1)."""
    one = torch.ones_like(latents[:1])
    return torch.cat([latents, one]).permute(1, 2, 0)
