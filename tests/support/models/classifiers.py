"""Tiny classifiers for moderation: real classes of transformers, with weights set by hand.

Those of text are sure of harm when a prompt has the word `bomb` anywhere, that of frames when the
picture is brighter than grey. Each is saved as its like on the hub is, as safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

WIDTH = 8
"""Of every hidden state. What its channels mean is said where they are set."""
WORDS = (
    *("[UNK]", "[PAD]", "[CLS]", "[SEP]", "bomb", "pond", "a", "Safety:", "Categories:"),
    *("Safe", "Unsafe", "Controversial", "Violent", "Dreadful"),
)
MARKS = ("<|im_start|>", "<|im_end|>")

GUARD_TEMPLATE = """\
<|im_start|>user
Evaluate the last query.
{{ messages[0].content }}
The first line must be one of: 'Safety: Safe', 'Safety: Unsafe', 'Safety: Controversial'.
The second starts with 'Categories:' <|im_end|>
{{ '<|im_start|>assistant\n' }}"""
CHAT_TEMPLATE = "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant "


def write_guard(
    folder: Path,
    *,
    logit: float = -40.0,
    severity: str = "Unsafe",
    category: str = "Violent",
    template: str = GUARD_TEMPLATE,
) -> Path:
    """A guard such as Qwen3Guard-Gen. Of a bomb it says `severity`, then `category`.

    Without a bomb, the logit of `Unsafe` is given, where that of `Safe` is 0.
    """
    tokenizer = _tokenizer()
    tokenizer.chat_template = template
    model: Any = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=WIDTH,
            tie_word_embeddings=False,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        )
    )
    _zero(model)
    word = tokenizer.convert_tokens_to_ids
    said, bombs = 1, 4
    with torch.no_grad():
        for name in (*WORDS, *MARKS):
            model.model.embed_tokens.weight[word(name), 7] = 1  # none is nothing, in the norms
        model.model.embed_tokens.weight[word("bomb"), 0] = 1
        for channel, name in enumerate(("Safety:", "Categories:", category), start=said):
            model.model.embed_tokens.weight[word(name), channel] = 1
        # Attention looks at all words alike, and notes whether there was a bomb.
        layer = model.model.layers[0]
        layer.self_attn.v_proj.weight[0, 0] = 1
        layer.self_attn.o_proj.weight[bombs, 0] = 1
        head = model.lm_head.weight
        head[word("Unsafe"), said] = logit / 2  # the norm makes 2 of 1
        head[word("Controversial"), said] = -100
        head[word(severity), bombs] = 10_000
        head[word(category), said + 1] = 100_000
        head[word("<|im_end|>"), said + 2] = 1_000_000
    return _save(folder, model, tokenizer)


def write_classifier(
    folder: Path,
    *,
    labels: tuple[str, ...] = ("neutral", "violence"),
    logit: float = -5.0,
    is_one_of: bool = True,
) -> Path:
    """A classifier with labels, of which the last is harm; its logit is that without a bomb."""
    tokenizer = _tokenizer()
    model: Any = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=64,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type=(
                "single_label_classification" if is_one_of else "multi_label_classification"
            ),
        )
    )
    _zero(model)
    eye = torch.eye(WIDTH)
    with torch.no_grad():
        # The norms enlarge whatever there is, so that one bomb among many words is as good as two.
        bomb = tokenizer.convert_tokens_to_ids("bomb")
        model.bert.embeddings.word_embeddings.weight[bomb, :2] = torch.tensor([1.0, -1.0])
        attention = model.bert.encoder.layer[0].attention
        for matrix in (attention.self.value, attention.output.dense, model.bert.pooler.dense):
            matrix.weight.copy_(eye)
        model.classifier.weight[-1, 0] = 20
        model.classifier.bias[-1] = logit
    return _save(folder, model, tokenizer)


def write_image_classifier(
    folder: Path, *, labels: tuple[str, str] = ("normal", "nsfw"), black: float = -10.0
) -> Path:
    """A plain ViT with two labels, such as Falconsai/nsfw_image_detection.

    The logit of harm is given for a black picture; that for a white one is 20 more.
    """
    torch.manual_seed(1)
    model: Any = ViTForImageClassification(
        ViTConfig(
            image_size=16,
            patch_size=8,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=1,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
    )
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)
    processor = ViTImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    with torch.no_grad():
        seen_black, seen_white = (
            model.vit(torch.full((1, 3, 16, 16), value)).last_hidden_state[0, 0]
            for value in (-1.0, 1.0)
        )
        step = seen_white - seen_black
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
        model.classifier.weight[1] = 20 * step / step.dot(step)
        model.classifier.bias[1] = black - model.classifier.weight[1].dot(seen_black)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(word, WORDS.index(word)) for word in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=10**6
    )


def _zero(model: nn.Module) -> None:
    """All but the scales of norms."""
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name.lower() and name.endswith("weight")
        parameter.data.fill_(float(is_scale))


def _save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
