"""The backdrop of the mock's videos: soft blobs of colour that go round slowly."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.request.params import HEIGHT, MODEL, WIDTH, GenerateParams

Floats = NDArray[np.floating]
Colour = tuple[int, int, int]

BLOBS = 5
ORBITS = (60.0, 120.0)
"""Radii of the circles that the blobs go on, in pixels."""
COARSE = 4
"""Colours are computed for every fourth pixel: they have no edges."""
WIDTHS = (220.0, 360.0)
"""Of a blob, in pixels: from its middle to where it has a third of its strength."""
ROUNDS = (11.0, 22.0)
"""Seconds for a circle."""
FPS = 16.0
"""At which the circles take as long, whatever the fps of the video."""
DARK_SHARE = 0.6
"""Of the videos; the others are light."""
DARK = np.array([0.21, 0.36, 0.50, 0.28, 0.58])
LIGHT = np.array([0.95, 0.86, 0.80, 0.91, 0.83])
"""Lightness of the blobs' colours, in OKLCH."""
HUES = np.array([0.0, 0.5, 1.0, 1.6, 2.6])
"""Of the blobs' colours, as angles from the first."""
WHITE, BLACK = (255, 255, 255), (18, 20, 28)
TO_ROOTS = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
TO_LINEAR = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
"""From OKLab to linear sRGB, in two steps."""
LINEAR_UP_TO = 0.0031308
"""The part of sRGB's curve that is straight."""


class Backdrop:
    """Soft blobs of colour that go round slowly."""

    def __init__(self, params: GenerateParams, colours: Floats) -> None:
        """`colours` are RGB from 0 to 255, `(BLOBS, 3)`."""
        random = random_of(params, params.model_copy(update={"fps": FPS}).model_dump_json())
        self._colours = colours
        self._centres = random.uniform((0.0, 0.0), (WIDTH, HEIGHT), (BLOBS, 2))
        self._radii = random.uniform(*ORBITS, (BLOBS, 1))
        self._starts = random.uniform(0, 2 * np.pi, (BLOBS, 1))
        self._speeds = 2 * np.pi / random.uniform(*ROUNDS, (BLOBS, 1))
        self._speeds *= random.choice((-1, 1), (BLOBS, 1))
        self._sharpness = (1 / random.uniform(*WIDTHS, (BLOBS, 1))) ** 2

    def at(self, seconds: float) -> Image.Image:
        """Each point has the mean of all colours, weighed by how near their blobs are."""
        angles = self._starts + self._speeds * seconds
        x, y = (self._centres + self._radii * np.hstack([np.cos(angles), np.sin(angles)])).T
        across, down = self._nearness(x, WIDTH), self._nearness(y, HEIGHT)
        # Not by `@`, whose threads cost more than they bring where processes share the cores.
        coloured = across[:, :, None] * self._colours[:, None]
        pixels = np.einsum("ky,kxc->yxc", down, coloured)
        pixels /= np.einsum("ky,kx->yx", down, across)[:, :, None]
        small = Image.fromarray((pixels + 0.5).astype(np.uint8))
        return small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)

    def _nearness(self, centres: Floats, length: int) -> Floats:
        """Of the points of an axis to each blob, `(BLOBS, length // COARSE)`."""
        squares = (np.arange(COARSE / 2, length, COARSE) - centres[:, None]) ** 2
        nearness: Floats = np.exp(-self._sharpness * squares).astype(np.float32)
        return nearness


def palette(params: GenerateParams) -> tuple[Floats, Colour]:
    """Colours of the seed and the prompt, as `Backdrop` takes them, and that of the letters."""
    random = random_of(params, "palette")
    is_dark = random.random() < DARK_SHARE
    hues = random.uniform(0, 2 * np.pi) + random.choice((-1, 1)) * HUES * random.uniform(0.7, 1.2)
    # More guidance gives stronger colours, as it does with the model.
    chroma = np.full(BLOBS, (0.06 if is_dark else 0.03) + 0.009 * params.guidance_scale)
    return _rgb(DARK if is_dark else LIGHT, chroma, hues), WHITE if is_dark else BLACK


def _rgb(lightness: Floats, chroma: Floats, hue: Floats) -> Floats:
    """From OKLCH to sRGB from 0 to 255: https://bottosson.github.io/posts/oklab/."""
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    linear = TO_LINEAR @ (TO_ROOTS @ np.stack([lightness, a, b])) ** 3
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= LINEAR_UP_TO, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rgb: Floats = (255 * encoded.T).astype(np.float32)
    return rgb


def random_of(params: GenerateParams, purpose: str) -> np.random.Generator:
    """Random numbers of the seed, the prompt and a purpose; those of each model are its own."""
    model = "" if params.model == MODEL else f" {params.model}"
    digest = hashlib.sha256(f"{params.seed} {params.prompt} {purpose}{model}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))
