"""Parameters of a video: names, ranges, defaults, and messages for invalid values.

Those of `mochi-1`; `models/request/catalogue.py` has what differs for other models.
"""

from __future__ import annotations

import random
import re
from collections.abc import Container, Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args, get_origin

from annotated_types import Ge, Le, MaxLen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from models.errors import InvalidParametersError
from models.request import loras

MODEL = "mochi-1"
"""The default model's slug."""
WIDTH, HEIGHT = 848, 480
"""Size of every video in pixels."""
DRAW_SEED = -1
MAX_SEED = 2**63 - 1
MAX_DRAWN_SEED = 2**53 - 1
"""The largest drawn seed, which JavaScript's double-precision numbers hold exactly."""
MAX_TEXT = 4000
REFUSED_PROMPT = "(refused)"
"""In place of one that is wrong or missing."""
ALIASES = {"num_frames": "frames", "num_inference_steps": "steps", "guidance": "guidance_scale"}
"""Names that diffusers and other servers have for parameters."""
MOST_FRAMES = 160
TEMPORAL_FACTOR = 6
"""Mochi's VAE turns k+1 latent frames into 6k+1 frames."""
Format = Literal["mp4", "webm", "gif"]
VideoType = Literal["video/mp4", "video/webm", "image/gif"]
FORMATS: Final[dict[Format, VideoType]] = {
    "mp4": "video/mp4",
    "webm": "video/webm",
    "gif": "image/gif",
}
"""What a video can be, each with its media type."""
Still = Literal["poster", "last_frame"]
"""A picture beside the video: the parameter that asks for it, and its field in a result."""
STILLS: Final[tuple[Still, ...]] = ("poster", "last_frame")
STILL_TYPE: Final = "image/jpeg"

_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")
_WORD = re.compile(r"[A-Za-z0-9_.+/-]{1,16}")
"""Of a wrong choice, what a message repeats: no prompt, which has spaces or is longer."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""ASCII control characters except tab and line ends. Text pasted from old encodings has others."""


def number_of_text(value: object) -> object:
    """The number in a text: forms have nothing else, and clients put them into JSON, too.

    Anything else is returned as it is.
    """
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return value
    return float(value) if "." in value else int(value)


def _flag_of_text(value: object) -> object:
    """The flag in the text of a form, as clients write them: Python's `requests` sends `True`.

    Anything else is returned as it is.
    """
    texts = {"true": True, "1": True, "false": False, "0": False}
    return texts.get(value.lower(), value) if isinstance(value, str) else value


def _whole(value: object) -> object:
    """Accept 52.0 as 52, which are the same number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain_text(value: str) -> str:
    if _CONTROL.search(value):
        raise PydanticCustomError("control", "control characters")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError("blank", "blank: it has only white space" if value else "empty")
    return value


def _loras(value: object) -> object:
    try:
        return loras.scales_of(value)
    except ValueError as error:
        raise PydanticCustomError("lora", "{why}", {"why": str(error)}) from None


Number = Annotated[float, BeforeValidator(number_of_text)]
Whole = Annotated[int, BeforeValidator(_whole), BeforeValidator(number_of_text)]
Text = Annotated[str, AfterValidator(_plain_text)]
Flag = Annotated[bool, BeforeValidator(_flag_of_text)]
Loras = Annotated[
    dict[str, float] | None, BeforeValidator(_loras), WithJsonSchema(loras.JSON_SCHEMA)
]


class GenerateParams(BaseModel):
    """The parameters that decide the frames of a video: all that an engine is told.

    `model` is the slug of the model that they are for: it is no field, but the class has it.
    """

    model: ClassVar[str] = MODEL

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    prompt: Annotated[Text, AfterValidator(_not_blank)] = Field(
        max_length=MAX_TEXT,
        description="What the video shows. Not blank; the first 256 tokens are read.",
    )
    negative_prompt: Text = Field(
        default="", max_length=MAX_TEXT, description="What the video should not show."
    )
    guidance_scale: Number = Field(
        default=4.5, ge=2, le=10, description="How closely the video follows the prompt."
    )
    fps: Number = Field(default=16, ge=7, le=30, description="Frames a second; may be fractional.")
    frames: Whole = Field(default=52, ge=1, le=MOST_FRAMES, description="Frames in the video.")
    steps: Whole = Field(default=30, ge=10, le=75, description="Denoising steps.")
    seed: Whole = Field(
        default=985521,
        ge=DRAW_SEED,
        le=MAX_SEED,
        description="The same seed and parameters give the same frames; -1 draws a seed.",
    )
    lora: Loras = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description=(
            "LoRAs of the server's workers: a name, or an object of names with their scales, where "
            "1 is as trained. `GET /version` lists the names."
        ),
    )

    @classmethod
    def most(cls, name: str) -> float:
        """The upper bound of a number."""
        bound: float = _bounds(cls.model_fields[name])[Le].le
        return bound

    @property
    def model_frames(self) -> int:
        """The number of frames that Mochi makes for this request: the next 6k+1."""
        return -(-(self.frames - 1) // TEMPORAL_FACTOR) * TEMPORAL_FACTOR + 1

    def with_seed(self, rng: random.Random) -> Self:
        """The parameters with a drawn seed in place of -1."""
        if self.seed != DRAW_SEED:
            return self
        return self.model_copy(update={"seed": rng.randint(0, MAX_DRAWN_SEED)})


class FileParams(BaseModel):
    """The parameters that decide the files of a video, and none of its frames.

    A default is not serialized: a record without them is that of an earlier release.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    format: Format = Field(
        default="mp4",
        exclude_if=lambda value: value == "mp4",
        description="The file of the video: H.264 in MP4, VP9 in WebM, or an animated GIF.",
    )
    poster: Flag = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="Whether the result has a JPEG of the middle frame.",
    )
    last_frame: Flag = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="Whether the result has a JPEG of the last frame.",
    )


class RequestParams(FileParams, GenerateParams):
    """All parameters of a request. Frozen; built by `parse_params` from JSON."""


def parse_params(
    body: Mapping[str, Any], kind: type[RequestParams] = RequestParams
) -> tuple[RequestParams, list[str]]:
    """Validate a decoded JSON object, or the texts of a form.

    A number or a flag may come as text. `kind`: the parameters of the model.

    Returns:
        The parameters, and the unknown names in `body`.

    Raises:
        InvalidParametersError: the text names each invalid field, its rule and the value.
    """
    try:
        params = kind.model_validate(dict(body))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        wrong = {str(one["loc"][0]): _explain(one, kind) for one in errors}
        raise InvalidParametersError.of(wrong) from None
    return params, [name for name in body if name not in kind.model_fields]


def valid_part(
    body: Mapping[str, Any], kind: type[RequestParams], wrong: Container[str]
) -> RequestParams:
    """The parameters of a body that `parse_params` has refused, to check what depends on them.

    Those that are `wrong` have their defaults; of `steps`, there are as many as there may be.
    """
    instead = {"prompt": REFUSED_PROMPT, "steps": int(kind.most("steps"))}
    valid = {name: value for name, value in body.items() if name not in wrong}
    return kind.model_validate(
        {name: value for name, value in instead.items() if name in wrong} | valid
    )


def whole_number(name: str, value: object, least: int, most: int, rule: str = "") -> int:
    """Read a field of a body that is no parameter of the video; it may come as text, too.

    Raises:
        InvalidParametersError: it is no whole number from `least` to `most`. The text also has the
            `rule` behind the range.
    """
    number = _whole(number_of_text(value))
    if isinstance(number, int) and not isinstance(number, bool) and least <= number <= most:
        return number
    also = rule and f", {rule}"
    text = f"`{name}` must be a whole number from {least} to {most}{also}; got {_described(value)}."
    raise InvalidParametersError.of({name: text})


def hint(name: str, others: Iterable[str] = ()) -> str:
    """What to say of a name that is not known. `others`: names besides those of parameters."""
    known = [*RequestParams.model_fields, *others]
    meant = ALIASES.get(name) or next(iter(get_close_matches(name, known, n=1)), "")
    return f"`{name}` is unknown and was ignored{meant and f'; did you mean `{meant}`?'}"


def shown(bound: float) -> str:
    """A bound of a range, as messages and documents show it."""
    return "2^63-1" if bound == MAX_SEED else f"{bound:g}"


def _explain(error: ErrorDetails, kind: type[GenerateParams]) -> str:
    name = str(error["loc"][0])
    if error["type"] == "lora":
        return f"`{name}` must be {loras.RULE}; it has {error['msg']}."
    field = kind.model_fields[name]
    rule = _rule(field)
    if error["type"] == "missing":
        return f"`{name}` is required: {rule}."
    if error["type"] == "blank":
        return f"`{name}` must not be {error['msg']}."
    if error["type"] == "control":
        return f"`{name}` must be {rule}; it has {error['msg']}."
    if error["type"] == "string_unicode":
        return f"`{name}` must be {rule}; it has half of a surrogate pair."
    value = error["input"]
    is_choice = field.annotation is bool or get_origin(field.annotation) is Literal
    is_word = is_choice and isinstance(value, str) and _WORD.fullmatch(value)
    came = f'"{value}"' if is_word else _described(value)
    return f"`{name}` must be {rule}; got {came}."


def _bounds(field: FieldInfo) -> dict[type, Any]:
    return {type(item): item for item in field.metadata}


def _rule(field: FieldInfo) -> str:
    bounds = _bounds(field)
    if field.annotation is bool:
        return "true or false"
    if get_origin(field.annotation) is Literal:
        *others, last = (f"`{choice}`" for choice in get_args(field.annotation))
        return f"{', '.join(others)} or {last}"
    if field.annotation is str:
        blank = "not blank, " if field.is_required() else ""
        most = bounds[MaxLen].max_length
        return f"Unicode text, {blank}of at most {most:,} characters, without control characters"
    kind = "a whole number" if field.annotation is int else "a number"
    return f"{kind} from {shown(bounds[Ge].ge)} to {shown(bounds[Le].le)}"


def _described(value: object) -> str:
    """Describe a rejected value without repeating the user's text."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case int() if abs(value) > 10**20:
            return "a number of more than 20 digits"
        case int() | float():
            return repr(value).removesuffix(".0")
        case str():
            return f"a string of {len(value):,} characters"
        case list():
            return "a list"
        case _:
            return "an object"
