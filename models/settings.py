"""Settings of the engine. The higher layers' settings build on this class."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.errors import EngineUnavailableError
from models.mock.card_speed import FORM as MOCK_SPEED_FORM
from models.mock.card_speed import INSTANT, PEAK_TFLOPS, SPEEDUPS
from models.request.catalogue import CATALOGUE, Model
from models.request.loras import parse_named
from models.request.params import MODEL

ENV_PREFIX = "MOCHI_"
GROUP_SIZES = tuple(SPEEDUPS)
_WITHOUT_REAL_WEIGHTS = frozenset(
    {
        *(
            "models",
            "mock",
            "mock_weights",
            "engine",
            "step_cache",
            "fake_step_seconds",
            "mock_speed",
        ),
        *("gpus_per_video", "encode_ahead", "loras"),
    }
)
"""Settings that engines without real weights use."""
_ENGINE = ("torch", "diffusers", "transformers")
"""Where these are, `--mock` runs the real engine."""
LIBRARIES = (
    *_ENGINE,
    *("accelerate", "google.protobuf", "huggingface_hub", "imageio_ffmpeg", "numpy"),
    *("PIL", "safetensors", "sentencepiece", "tokenizers"),
)
"""All that pulling and loading weights imports, first or last: the extra `worker`."""


def default_data_dir() -> Path:
    """The data folder when `MOCHI_DATA_DIR` is not set."""
    base = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share")
    with suppress(RuntimeError):  # without a home folder, the setting has to be set
        base = base.expanduser()
    return base / "mochi-server"


def missing_libraries() -> list[str]:
    """The modules of the extra `worker` that are not installed. Imports none of them."""
    return [name for name in LIBRARIES if not _is_installed(name)]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # of the parent package
        return False


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for its user alone.

    `mkdir(parents=True)` would leave the mode of those above to the umask. Raises OSError.
    """
    if not folder.parent.exists():
        make_private_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names of files, are on disk. Raises OSError.

    Until then a power cut may take them back: also a rename, until its folder is on disk.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_Path = TypeVar("_Path", str, Path)


def _expand(path: _Path) -> _Path:
    """Replace a leading `~`: shells leave it in `--data-dir=~/x`, compose files everywhere."""
    if not str(path).startswith("~"):
        return path
    try:
        return type(path)(Path(path).expanduser())
    except RuntimeError:
        raise PydanticCustomError(
            "home", "There is no such home folder: set HOME, or write the whole path"
        ) from None


def _expand_each(paths: str) -> str:
    return ",".join(_expand(path.strip()) for path in paths.split(","))


def _make_absolute(path: Path) -> Path:
    try:
        return _expand(path).absolute()
    except FileNotFoundError:
        raise PydanticCustomError(
            "working_directory",
            "The working directory has been deleted: change to another, or write the whole path",
        ) from None


Folder = Annotated[Path, AfterValidator(_make_absolute)]
PathOrName = Annotated[str, AfterValidator(_expand)]
"""A path, or something else: empty, or the name of weights."""
Paths = Annotated[str, AfterValidator(_expand_each)]
"""Comma-separated."""


class EngineSettings(BaseSettings):
    """Which engine a worker loads. Read once, in a `__main__`, and passed down."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,  # what a compose file passes on from an empty variable
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
    )

    mock: bool = Field(
        default=False,
        description=(
            "Run without real weights, on any CPU: with mock weights where torch is installed, "
            "else with the light mock, which draws its videos."
        ),
    )
    mock_weights: bool = Field(
        default=False,
        description="Use mock weights: a tiny Mochi that runs through the real engine.",
    )
    engine: Literal["mochi", "fake"] = Field(
        default="mochi",
        description="`mochi`, or `fake`: the light mock, even where torch is installed.",
    )
    models: str = Field(
        default=MODEL,
        min_length=1,
        description=(
            "The models that a worker runs, and that a gateway offers even while no worker runs "
            f"them, comma-separated: {', '.join(f'`{slug}`' for slug in CATALOGUE)}. A worker runs "
            "one with real weights, and any with mock weights."
        ),
    )
    weights: PathOrName = Field(
        default="",
        validate_default=True,
        description=(
            "A folder with Mochi weights in diffusers' layout, a Hugging Face id, or `dummy`: "
            "random weights of full size, to measure speed and memory. Empty: the model's own, "
            f"{', '.join(f'{model.weights} for `{slug}`' for slug, model in CATALOGUE.items())}."
        ),
    )
    revision: str = Field(
        default="",
        pattern="^([0-9a-f]{40})?$",
        description="The Hugging Face commit, 40 hex digits; empty: the one that was pulled.",
    )
    variant: Literal["float32", "bf16"] = Field(
        default="float32",
        description=(
            "The transformer's files that a pull takes: `bf16` saves 20 GB and loads faster, with "
            "norms rounded. Weights that are here stay as they are."
        ),
    )
    device: str = Field(
        default="cuda",
        pattern=r"^cuda(:\d+)?$",
        description="The CUDA device of a worker with real weights, like cuda or cuda:1.",
    )
    gpus_per_video: int = Field(
        default=1,
        description=(
            "GPUs that share each video: 1, 2, 4, 6 or 8 of one kind, from MOCHI_DEVICE on. With "
            "mock weights, processes, at most 4; the light mock only simulates their speed."
        ),
    )
    profile: Literal["auto", "80gb", "48gb", "24gb", "offload"] = Field(
        default="auto",
        description="What stays in GPU memory; `auto` picks the first that fits. All are lossless.",
    )
    precision: Literal["auto", "reference", "bf16"] = Field(
        default="auto",
        description="`reference`: T5 in float32, as Genmo; `auto` picks it where it fits.",
    )
    encode_ahead: bool = Field(
        default=True,
        description=(
            "Where T5 works on the CPU: towards the end of a run, encode the prompt of the next "
            "request, at the lowest priority. Under a CPU limit, it takes from the run's share."
        ),
    )
    attention: Literal["auto", "cudnn", "fa3", "fa4", "flash", "efficient", "math"] = Field(
        default="auto", description="The attention kernel; `auto` picks the fastest for the GPU."
    )
    compile: bool = Field(
        default=True, description="Compile the model for the GPU; later starts reuse the result."
    )
    lora: Paths = Field(
        default="",
        description=(
            "LoRA files to fuse in, comma-separated: FILE.safetensors or FILE.safetensors=0.8."
        ),
    )
    loras: str = Field(
        default="",
        description=(
            "LoRAs that requests may name, up to 16, comma-separated: name=FILE.safetensors. With "
            "mock weights, a name alone will do: they draw its numbers, and the light mock reads "
            "no file."
        ),
    )
    fp8: bool = Field(
        default=False,
        description="Lossy: matrix products in 8-bit floats. Needs Ada, Hopper or newer.",
    )
    step_cache: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Lossy: skip blocks when a step changes less than this fraction; 0 is off.",
    )
    fake_step_seconds: float = Field(
        default=0.02, ge=0, le=60, description="How long a step of the light mock takes."
    )

    mock_speed: str = Field(
        default=INSTANT,
        pattern=MOCK_SPEED_FORM,
        description=(
            "Simulated speed without real weights: `instant`, or the estimate for a GPU "
            f"({', '.join(f'`{card}`' for card in PEAK_TFLOPS)}), or for as many as "
            "MOCHI_GPUS_PER_VIDEO says; `h100/60` is sixty times faster. The card's energy "
            "is simulated, too."
        ),
    )

    @field_validator("models")
    @classmethod
    def _are_models(cls, slugs: str) -> str:
        each = [slug.strip() for slug in slugs.split(",")]
        for slug in each:
            if slug not in CATALOGUE:
                raise PydanticCustomError(
                    "models",
                    "There is no model {slug}; there are: {all}",
                    {"slug": slug or "without a name", "all": ", ".join(CATALOGUE)},
                )
        return ",".join(dict.fromkeys(each))

    @field_validator("loras")
    @classmethod
    def _are_named(cls, text: str) -> str:
        """The same with whole paths: other processes start in other folders."""
        try:
            named = parse_named(text)
        except ValueError as error:
            raise PydanticCustomError("loras", "{why}", {"why": str(error)}) from None
        paths = {name: path and _make_absolute(path) for name, path in named.items()}
        return ",".join(f"{name}={path}" if path else name for name, path in paths.items())

    @field_validator("weights")
    @classmethod
    def _are_of_the_model(cls, weights: str, info: ValidationInfo) -> str:
        first = str(info.data.get("models", MODEL)).partition(",")[0]
        return weights or CATALOGUE[first].weights

    @field_validator("gpus_per_video")
    @classmethod
    def _divides_the_model(cls, count: int) -> int:
        """Two branches of guidance, and 24 heads in each, which are shared evenly."""
        if count not in GROUP_SIZES:
            raise PydanticCustomError("gpus_per_video", "It must be 1, 2, 4, 6 or 8")
        return count

    @property
    def named_loras(self) -> dict[str, Path | None]:
        """The files of `loras` by name; None of a name alone."""
        return parse_named(self.loras)

    @property
    def served(self) -> tuple[Model, ...]:
        """The models of `models`."""
        return tuple(CATALOGUE[slug] for slug in self.models.split(","))

    @property
    def is_group(self) -> bool:
        """Whether several processes share each video. The light mock needs none."""
        return self.gpus_per_video > 1 and not self.is_light_mock

    @property
    def is_mock(self) -> bool:
        """Whether the engine has no real weights."""
        return self.mock or self.mock_weights or self.engine == "fake"

    @property
    def is_light_mock(self) -> bool:
        """Whether the engine draws its videos, without a model and torch."""
        is_choice = self.mock and not self.mock_weights
        return self.engine == "fake" or (is_choice and not all(map(find_spec, _ENGINE)))

    @property
    def ignored(self) -> list[str]:
        """The variables that were set and have no effect without real weights."""
        if not self.is_mock:
            return []
        unused = EngineSettings.model_fields.keys() - _WITHOUT_REAL_WEIGHTS
        if self.is_light_mock and self.mock_speed == INSTANT:
            unused |= {"gpus_per_video"}
        names = self.model_fields_set & unused
        return sorted(ENV_PREFIX + name.upper() for name in names)


def check_models(settings: EngineSettings) -> None:
    """Check that one worker can run the models.

    Real weights fill a card, and a group of cards has one engine.

    Raises:
        EngineUnavailableError: it cannot run so many.
    """
    slugs = [model.slug for model in settings.served]
    if len(slugs) > 1 and (settings.is_group or not settings.is_mock):
        raise EngineUnavailableError(
            f"MOCHI_MODELS={settings.models} names {len(slugs)} models, and a worker with real "
            "weights, or a group of GPUs, runs one. Start a worker for each: "
            + ", ".join(f"MOCHI_MODELS={slug}" for slug in slugs)
            + "."
        )
