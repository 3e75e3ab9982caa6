"""Judges prompts by a guard that writes its verdict, or by a classifier with labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from models.moderation.classifiers.loading import (
    SAFELY,
    Source,
    choose_device,
    inference,
    probabilities,
)
from models.moderation.labels import Labels
from models.moderation.settings import ModerationSettings
from models.moderation.stages import PromptJudge

TRIAL = "A red panda drinks tea"

ANSWER = "Safety:"
"""The start of the answer of a guard like Qwen3Guard-Gen; one of `SEVERITIES` follows."""
SEVERITIES = ("Safe", "Controversial", "Unsafe")
CATEGORIES = (
    "Non-violent Illegal Acts",
    "Violent",
    "Sexual Content or Sexual Acts",
    "PII",
    "Suicide & Self-Harm",
    "Unethical Acts",
    "Politically Sensitive Topics",
    "Copyright Violation",
    "Jailbreak",
)
"""Follow `Categories:` on the next line."""
CATEGORY_TOKENS = 24

WINDOW = 512
"""Tokens that a classifier reads at a time; a longer prompt is read in several windows."""
OVERLAP = 64
"""Tokens that a window shares with the one before, so that no phrase is cut in two."""

_CATEGORY = re.compile("|".join(map(re.escape, CATEGORIES)))


class Guard:
    """A `PromptJudge` over a guard such as Qwen3Guard-Gen.

    By its model card, the guard writes two lines: `Safety: Unsafe` and `Categories: Violent`. Here
    the first word is given, and the probabilities of its severities are compared with a threshold.
    The guard writes the category only for a prompt that is blocked.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 (of any class) (transformers' are not typed)
        tokenizer: PreTrainedTokenizerBase,
        answers: list[int],
        labels: Labels,
    ) -> None:
        """Wrap a loaded guard.

        Args:
            model: a causal language model, on its device.
            tokenizer: of the model, with its chat template.
            answers: the first token of each of `SEVERITIES`.
            labels: `SEVERITIES` as labels.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._answers = answers
        self._labels = labels
        self._marks = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)

    def blocks(self, prompt: str) -> str | None:
        asked = question(self._tokenizer, self._plain(prompt))
        with inference(self._model.device):
            logits = self._model(self._read(asked), logits_to_keep=1).logits[0, -1]
            severity = self._labels.blocks(probabilities(logits[self._answers], self._labels))
            return None if severity is None else self._category(asked, severity)

    def _plain(self, prompt: str) -> str:
        """Remove special tokens, such as an end of turn: a prompt could answer itself."""
        for mark in self._marks:
            prompt = prompt.replace(mark, " ")
        return prompt

    def _category(self, asked: str, severity: str) -> str:
        """One of `CATEGORIES`, as a prompt may lead the guard to write anything."""
        read = self._read(f"{asked} {severity}\nCategories:")
        written = self._model.generate(read, max_new_tokens=CATEGORY_TOKENS, do_sample=False)
        text = self._tokenizer.decode(written[0, read.shape[1] :], skip_special_tokens=True)
        known = _CATEGORY.search(str(text))
        return known[0] if known else severity

    def _read(self, text: str) -> Tensor:
        ids = self._tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        return ids.to(self._model.device)  # type: ignore[no-any-return]


class Classifier:
    """A `PromptJudge` over a sequence classifier, which has a label for each class."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, labels: Labels) -> None:  # noqa: ANN401
        self._model = model
        self._tokenizer = tokenizer
        self._labels = labels
        most = getattr(model.config, "max_position_embeddings", WINDOW)
        self._window = min(WINDOW, tokenizer.model_max_length, most)

    def blocks(self, prompt: str) -> str | None:
        """See `PromptJudge`. All parts of the prompt are read."""
        with inference(self._model.device):
            verdicts = (
                self._labels.blocks(probabilities(self._model(**window).logits[0], self._labels))
                for window in self._windows(prompt)
            )
            return next((verdict for verdict in verdicts if verdict is not None), None)

    def _windows(self, prompt: str) -> Iterator[dict[str, Tensor]]:
        read = self._tokenizer(
            prompt,
            truncation=True,
            max_length=self._window,
            stride=min(OVERLAP, self._window // 4),
            return_overflowing_tokens=True,
        )
        for index in range(len(read["input_ids"])):
            yield {
                name: torch.tensor([read[name][index]], device=self._model.device)
                for name in self._tokenizer.model_input_names
            }


def question(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The input of a guard: the chat, and the beginning of its answer."""
    chat = [{"role": "user", "content": prompt}]
    return f"{tokenizer.apply_chat_template(chat, tokenize=False)}{ANSWER}"


def load(folder: Path, settings: ModerationSettings) -> PromptJudge:
    """Load a folder by its architecture, and try it once.

    Raises:
        EngineUnavailableError: it cannot be used; the text says why.
    """
    device = choose_device(settings)
    source = Source("MOCHI_MODERATION_TEXT", folder)
    source.check("config.json", "tokenizer.json")
    architecture = source.architecture()
    with source.translate_errors():
        tokenizer = AutoTokenizer.from_pretrained(folder, **SAFELY)
    judge: PromptJudge
    if architecture.endswith("ForCausalLM"):
        judge = _guard(source, tokenizer, device, settings)
    elif architecture.endswith("ForSequenceClassification"):
        model = source.read(AutoModelForSequenceClassification, device)
        labels = source.labels(model, settings.harmless_labels, settings.moderation_text_threshold)
        judge = Classifier(model, tokenizer, labels)
    else:
        raise source.refusal(
            f"it is a {architecture}, not a sequence classifier or a guard such as Qwen3Guard-Gen"
        )
    source.try_once(lambda: judge.blocks(TRIAL))
    return judge


def _guard(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    settings: ModerationSettings,
) -> Guard:
    with source.translate_errors():
        asked = question(tokenizer, TRIAL)
        answers = [_first_token(tokenizer, asked, severity) for severity in SEVERITIES]
    # Any other language model would answer something, too.
    is_asked = all(f"{ANSWER} {severity}" in asked for severity in SEVERITIES)
    if not is_asked or len(set(answers)) < len(SEVERITIES):
        raise source.refusal(
            "it is a language model, not a guard such as Qwen3Guard-Gen: its chat template does "
            f"not ask for `{ANSWER} {SEVERITIES[0]}`, `{SEVERITIES[1]}` or `{SEVERITIES[2]}`"
        )
    labels = source.check_labels(
        Labels(SEVERITIES, settings.harmless_labels, settings.moderation_text_threshold)
    )
    return Guard(source.read(AutoModelForCausalLM, device), tokenizer, answers, labels)


def _first_token(tokenizer: PreTrainedTokenizerBase, asked: str, severity: str) -> int:
    """The first token of an answer. The tokens before must not depend on the answer."""
    before = tokenizer(asked, add_special_tokens=False).input_ids
    whole = tokenizer(f"{asked} {severity}", add_special_tokens=False).input_ids
    if whole[: len(before)] != before:
        raise ValueError(f"the tokenizer reads `{ANSWER} {severity}` as one")
    return int(whole[len(before)])
