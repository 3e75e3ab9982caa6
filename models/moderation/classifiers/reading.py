"""A folder to a model that judges: whatever could make it judge at random is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from models.cuda import choose_allocator, translate_gpu_errors
from models.errors import EngineBrokenError, EngineUnavailableError, OutOfMemoryError
from models.moderation.labels import Labels
from models.moderation.settings import ModerationSettings

SAFELY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""For every `from_pretrained`: no network, and no code that came with a model."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        variable: the setting that names it.
        folder: with a snapshot of it.
    """

    variable: str
    folder: Path

    def check(self, *names: str) -> None:
        """That it has these files, and weights that run no code.

        Raises:
            EngineUnavailableError: it has not.
        """
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise self.refusal(f"it lacks {', '.join(missing)}")
        if not any(self.folder.glob("*.safetensors")):
            raise self.refusal(
                "it has no weights as safetensors, and others are not loaded: a pickle runs "
                "whatever code its author put there"
            )

    def architecture(self) -> str:
        """The class that it was saved from.

        Raises:
            EngineUnavailableError: it does not say.
        """
        try:
            config = json.loads((self.folder / "config.json").read_bytes())
            return str(config["architectures"][0])
        except (OSError, ValueError, LookupError, TypeError):
            raise self.refusal("its config.json names no architecture") from None

    def read(self, kind: Any, device: torch.device) -> PreTrainedModel:  # noqa: ANN401 (an AutoModel)
        """Load the model, whole.

        Raises:
            EngineUnavailableError: something in it is missing or damaged.
        """
        # float32 is the fastest on a CPU; a GPU takes what was saved.
        dtype = "auto" if device.type == "cuda" else torch.float32
        with self.translate_errors():
            model, report = kind.from_pretrained(
                self.folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **SAFELY
            )
            model.eval().to(device)
        if report["missing_keys"]:
            # They would be random numbers, and warned of in a log at most.
            raise self.refusal(f"it has no weights for {', '.join(sorted(report['missing_keys']))}")
        return model  # type: ignore[no-any-return]

    def check_labels(self, labels: Labels) -> Labels:
        """The same, if they can tell anything apart.

        Raises:
            EngineUnavailableError: they cannot.
        """
        if labels.problem:
            raise self.refusal(labels.problem)
        return labels

    def labels(self, model: Any, harmless: frozenset[str], threshold: float) -> Labels:  # noqa: ANN401
        """What a classifier was trained to tell apart.

        Raises:
            EngineUnavailableError: it comes to nothing here.
        """
        config = model.config
        names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
        is_one_of = config.problem_type != "multi_label_classification"
        return self.check_labels(Labels(names, harmless, threshold, is_one_of))

    def trial(self, judge: Callable[[], object]) -> None:
        """Judge something once, so that no request is the first to meet what is wrong.

        Raises:
            EngineUnavailableError: it failed.
        """
        try:
            judge()
        except EngineBrokenError:
            raise  # starting again may help
        except Exception as error:
            raise self.refusal(f"it does not work ({error})") from error

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turns what transformers raises over a folder into a refusal."""
        try:
            yield
        except Exception as error:
            raise self.refusal(f"it cannot be loaded ({error})") from error

    def refusal(self, why: str) -> EngineUnavailableError:
        """What to raise."""
        return EngineUnavailableError(
            f"{self.variable}: {self.folder} is of no use: {why}. "
            "Choose another model, or unset the variable."
        )


def prepare(settings: ModerationSettings) -> torch.device:
    """Where classifiers work. To be called before anything is loaded.

    Raises:
        EngineUnavailableError: there is no such device.
    """
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()  # warnings may quote prompts
    logging.disable_progress_bar()
    if settings.moderation_device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", torch.device(settings.device).index or 0)
    if device.index >= torch.cuda.device_count():
        raise EngineUnavailableError(
            f"MOCHI_MODERATION_DEVICE=cuda: there is no card MOCHI_DEVICE={settings.device} here. "
            "Set MOCHI_MODERATION_DEVICE=cpu."
        )
    choose_allocator()
    return device


@contextmanager
def judging(device: torch.device) -> Iterator[None]:
    """Around every use of a model.

    Raises:
        OutOfMemoryError: the GPU's memory is full.
        EngineBrokenError: the GPU answers nothing any more.
    """
    try:
        with translate_gpu_errors(device), torch.inference_mode():
            yield
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(
            "The GPU has too little memory for moderation. Set MOCHI_MODERATION_DEVICE=cpu."
        ) from None


def probabilities(logits: Tensor, labels: Labels) -> list[float]:
    """Of each label."""
    numbers = logits.float()
    chances = numbers.softmax(-1) if labels.is_one_of else numbers.sigmoid()
    return [float(chance) for chance in chances]
