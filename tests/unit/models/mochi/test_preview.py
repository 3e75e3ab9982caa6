"""Previews: no VAE, no wait, and yet the colours of the video."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from models.engine import Engine, Picture
from models.mochi.engine import MochiEngine
from models.mochi.loading.load import assemble_mock, read_weights
from models.mochi.network.vae import Decoder
from models.mochi.parts import Dtypes
from models.mochi.preview import fit_colours
from models.mochi.synthetic.mock import write_mock_checkpoint
from models.mock.fake_engine import FakeEngine
from models.mock.scene import PREVIEW
from models.request.params import GenerateParams

STEPS = 10


class Shown:
    """Keeps what it is shown."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.pictures: list[Picture] = []

    def show(self, picture: Picture) -> None:
        self.pictures.append(picture)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> MochiEngine:
    """With mock weights, and without words around its frames."""
    checkpoint = write_mock_checkpoint(tmp_path_factory.mktemp("mock"))
    return assemble_mock(read_weights(checkpoint, Dtypes()), step_cache=0)


def generate(engine: Engine, shown: Shown | None) -> list[bytes]:
    params = GenerateParams(prompt="a cat", frames=13, steps=STEPS)
    return list(engine.generate(params, lambda *_: None, None, shown).frames)


@pytest.mark.parametrize(("every", "steps"), [(1, range(1, 10)), (3, (3, 6, 9)), (10, ())])
def test_there_is_a_picture_every_so_many_steps(
    engine: MochiEngine, every: int, steps: tuple[int, ...]
) -> None:
    shown = Shown(every)
    generate(engine, shown)
    assert [picture.step for picture in shown.pictures] == list(steps)
    for picture in shown.pictures:
        assert picture.media_type == "image/jpeg"
        assert len(picture.data) < 8000
        assert Image.open(io.BytesIO(picture.data)).size == (10, 6)


def test_the_video_is_the_same_with_and_without_previews(engine: MochiEngine) -> None:
    assert generate(engine, Shown(1)) == generate(engine, None)


class LinearDecoder(Decoder):
    """Decodes as if colours were a linear function of the latents."""

    channels = 12

    def __init__(self, colours: torch.Tensor) -> None:
        self._colours = colours

    def decode(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        frame = latents[0, :, 0].permute(1, 2, 0)
        pixels = (frame @ self._colours[:-1] + self._colours[-1]).clamp(0, 1).mul(255)
        yield pixels.repeat_interleave(8, 0).repeat_interleave(8, 1)[None].to(torch.uint8)


def test_the_colours_are_those_of_the_decoder_that_is_loaded() -> None:
    colours = 0.03 * torch.randn((13, 3), generator=torch.Generator().manual_seed(7))
    colours[-1] = 0.5
    fitted = fit_colours(LinearDecoder(colours), torch.device("cpu"), 106, 60)
    assert torch.allclose(fitted, colours, atol=0.004)  # a level is 0.0039


def test_the_fake_engine_shows_png() -> None:
    shown = Shown(4)
    generate(FakeEngine(0), shown)
    assert [picture.step for picture in shown.pictures] == [4, 8]
    for picture in shown.pictures:
        assert picture.media_type == "image/jpeg"
        with Image.open(io.BytesIO(picture.data)) as image:
            image.load()
            assert image.size == PREVIEW
