"""Loads a classifier from a folder, and refuses one that would judge at random."""

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
"""Arguments of every `from_pretrained`: no network, and no code of the model's author."""


@dataclass(frozen=True)
class Source:
    """The folder of a model, and the variable that names it.

    All methods raise `EngineUnavailableError`, with a remedy, where the model cannot be used.
    """

    variable: str
    folder: Path

    def check(self, *names: str) -> None:
        """Check that the folder has these files, and safetensors."""
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise self.refusal(f"it lacks {', '.join(missing)}")
        if not any(self.folder.glob("*.safetensors")):
            raise self.refusal(
                "it has no weights as safetensors; others are not loaded, as a pickle runs its "
                "author's code"
            )

    def architecture(self) -> str:
        """The class of the model, by its config.json."""
        try:
            config = json.loads((self.folder / "config.json").read_bytes())
            return str(config["architectures"][0])
        except (OSError, ValueError, LookupError, TypeError):
            raise self.refusal("its config.json names no architecture") from None

    def read(self, kind: Any, device: torch.device) -> PreTrainedModel:  # noqa: ANN401 (of any class) (an AutoModel)
        """Load the model with all its weights."""
        # float32 is the fastest on a CPU; a GPU uses the dtype of the file.
        dtype = "auto" if device.type == "cuda" else torch.float32
        with self.translate_errors():
            model, report = kind.from_pretrained(
                self.folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **SAFELY
            )
            model.eval().to(device)
        if report["missing_keys"]:
            # transformers initialises them at random, with a warning at most.
            raise self.refusal(f"it has no weights for {', '.join(sorted(report['missing_keys']))}")
        return model  # type: ignore[no-any-return]

    def check_labels(self, labels: Labels) -> Labels:
        """Return labels that can tell harm from no harm."""
        if labels.problem:
            raise self.refusal(labels.problem)
        return labels

    def labels(self, model: Any, harmless: frozenset[str], threshold: float) -> Labels:  # noqa: ANN401
        """The labels of a classifier, by its config."""
        config = model.config
        names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
        is_one_of = config.problem_type != "multi_label_classification"
        return self.check_labels(Labels(names, harmless, threshold, is_one_of))

    def try_once(self, judge: Callable[[], object]) -> None:
        """Judge an example, so that errors show at the start and not in a request."""
        try:
            judge()
        except EngineBrokenError:
            raise  # another start may help
        except Exception as error:
            raise self.refusal(f"it does not work ({error})") from error

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self.refusal(f"it cannot be loaded ({error})") from error

    def refusal(self, why: str) -> EngineUnavailableError:
        return EngineUnavailableError(
            f"{self.variable}: {self.folder} cannot be used: {why}. "
            "Choose another model, or unset the variable."
        )


def choose_device(settings: ModerationSettings) -> torch.device:
    """The device of the classifiers. Call this before anything is loaded.

    Raises:
        EngineUnavailableError: the device does not exist.
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
def inference(device: torch.device) -> Iterator[None]:
    """Wrap every use of a model.

    Raises:
        OutOfMemoryError: the GPU's memory is full.
        EngineBrokenError: the GPU refuses all further work.
    """
    try:
        with translate_gpu_errors(device), torch.inference_mode():
            yield
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(
            "The GPU has too little memory for moderation. Set MOCHI_MODERATION_DEVICE=cpu."
        ) from None


def probabilities(logits: Tensor, labels: Labels) -> list[float]:
    numbers = logits.float()
    normalised = numbers.softmax(-1) if labels.is_one_of else numbers.sigmoid()
    return [float(probability) for probability in normalised]
