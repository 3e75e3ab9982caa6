"""The models of this server: one entry each, which routes, queues, workers and documents follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from models.request.params import MODEL, GenerateParams, Number, RequestParams, Whole


@dataclass(frozen=True)
class NoiseSchedule:
    """A linear-quadratic schedule, as Genmo's: small steps at first, then larger and larger ones.

    Attributes:
        threshold: share of the noise that the linear part removes, 0 to 1.
        linear: share of the steps in that part, 0 to 1; rounded down to whole steps.
    """

    threshold: float
    linear: float

    def linear_steps(self, steps: int) -> int:
        """Steps of the linear part, of so many."""
        return int(self.linear * steps)


@dataclass(frozen=True)
class Model:
    """A model that clients ask for by its slug.

    Attributes:
        slug: its name in paths, records and settings: lower-case letters, digits and hyphens.
        title: its name for people; also `Traits.model` of an engine with its weights.
        parameters: what decides the frames, with ranges and defaults.
        request: the same, with what decides the files.
        weights: the weights that a worker loads unless told otherwise, a Hugging Face id.
        schedule: of the denoising steps.
        published: when its weights were published, in seconds since 1970.
        owner: who published them.
        mock_seed: draws the values of its mock weights.
    """

    slug: str
    title: str
    parameters: type[GenerateParams]
    request: type[RequestParams]
    weights: str
    schedule: NoiseSchedule
    published: int
    owner: str
    mock_seed: int


class FastParams(GenerateParams):
    """The parameters of `mochi-1-fast`.

    It is distilled for 8 steps and a guidance of 1.5. The ranges go from half of the steps to twice
    as many, and as far with the guidance: beyond, it was not trained, and `mochi-1` is there.
    """

    model: ClassVar[str] = "mochi-1-fast"

    guidance_scale: Number = Field(
        default=1.5, ge=1, le=3, description="How closely the video follows the prompt."
    )
    steps: Whole = Field(default=8, ge=4, le=16, description="Denoising steps.")


class FastRequestParams(FastParams, RequestParams):
    """All parameters of a request for it. Of two bases with a field, pydantic takes the first."""


MOCHI = Model(
    slug=MODEL,
    title="Mochi 1",
    parameters=GenerateParams,
    request=RequestParams,
    weights="genmo/mochi-1-preview",
    # https://github.com/genmoai/mochi: `linear_quadratic_schedule(steps, 0.025)`
    schedule=NoiseSchedule(threshold=0.025, linear=0.5),
    published=1_729_555_200,
    owner="genmo",
    mock_seed=1,
)
FAST_MOCHI = Model(
    slug=FastParams.model,
    title="FastMochi",
    parameters=FastParams,
    request=FastRequestParams,
    weights="FastVideo/FastMochi-diffusers",
    # https://github.com/hao-ai-lab/FastVideo, `scripts/inference/inference_mochi_hf.sh`:
    # `--num_inference_steps 8 --guidance_scale 1.5 --linear_threshold 0.1 --linear_range 0.75`
    schedule=NoiseSchedule(threshold=0.1, linear=0.75),
    published=1_734_393_600,
    owner="FastVideo",
    mock_seed=2,
)
CATALOGUE: Mapping[str, Model] = {model.slug: model for model in (MOCHI, FAST_MOCHI)}
"""By slug; the first is the default."""
