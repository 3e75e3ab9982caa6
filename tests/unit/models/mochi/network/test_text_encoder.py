from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread, current_thread

import pytest
import torch
from diffusers import MochiPipeline
from torch import Tensor, nn
from transformers import T5EncoderModel

from models.mochi.network.attention import use_kernel
from models.mochi.network.text_encoder import MAX_KEPT, MAX_TOKENS, TextEncoder
from models.mochi.synthetic.mock import character_tokenizer
from tests.support.models.tiny_mochi import (
    CPU,
    TEXT_WIDTH,
    error,
    make_pipeline,
    make_stock,
    make_text_encoder,
)

SAME_CPU = torch.device("cpu", 0)
"""To torch another device than `CPU`."""

# Each character is a token, and a text starts with a space and ends with a mark.
FULL = (MAX_TOKENS - 2) * "a"
END_MARK = 1

TEXTS = ["x", " ", "a pond", "A pond at dawn, 猫", "b" + FULL[:-2], "b" + FULL[:-1]]
CUT_TEXTS = ["b" + FULL, "bc" * 200, 1000 * "word "]


@pytest.fixture(scope="module")
def stock() -> MochiPipeline:
    return make_pipeline(make_stock(1), make_text_encoder())


@pytest.fixture
def encoder() -> T5EncoderModel:
    return make_text_encoder()


@pytest.fixture
def texts(encoder: T5EncoderModel) -> TextEncoder:
    return TextEncoder(character_tokenizer(), encoder, lives_on=CPU, works_on=CPU)


@pytest.fixture
def read(encoder: T5EncoderModel) -> list[Tensor]:
    """The token ids of each text that the encoder has worked on."""
    seen: list[Tensor] = []
    encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


# What an embedding is


@pytest.mark.parametrize("text", TEXTS + CUT_TEXTS, ids=lambda text: f"{text[:8]}{len(text)}")
def test_an_embedding_is_stock_s_without_the_padding(
    texts: TextEncoder, stock: MochiPipeline, text: str
) -> None:
    [padded], [mask] = stock._get_t5_prompt_embeds(text)
    embedding = texts.encode(text).embedding
    assert len(embedding) == mask.sum()
    assert error(embedding, padded[mask]) < 1e-5


@pytest.mark.parametrize("text", TEXTS + CUT_TEXTS, ids=lambda text: f"{text[:8]}{len(text)}")
def test_the_encoder_reads_the_tokens_that_stock_s_does(
    texts: TextEncoder, stock: MochiPipeline, read: list[Tensor], text: str
) -> None:
    texts.encode(text)
    [ids] = read[0]
    expected = stock.tokenizer(
        text, padding="max_length", max_length=256, truncation=True, return_tensors="pt"
    )
    assert ids.tolist() == expected.input_ids[expected.attention_mask.bool()].tolist()
    assert ids[-1] == END_MARK


def test_an_empty_text_has_no_tokens(texts: TextEncoder, read: list[Tensor]) -> None:
    prompt = texts.encode("")
    assert (prompt.tokens, prompt.is_cut) == (0, False)
    assert prompt.embedding.shape == (0, TEXT_WIDTH)
    assert not read


def test_an_embedding_has_the_encoder_s_dtype() -> None:
    encoder = make_text_encoder()
    for parameter in encoder.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    texts = TextEncoder(character_tokenizer(), encoder, lives_on=CPU, works_on=CPU)
    assert {texts.encode(text).embedding.dtype for text in ("", "a")} == {torch.bfloat16}


def test_in_bfloat16_it_is_as_exact_on_the_cpu_as_with_the_fused_attention(
    encoder: T5EncoderModel,
) -> None:
    for name, parameter in encoder.named_parameters():
        parameter.data = parameter.data.bfloat16()
        if name.endswith(".q.weight"):
            parameter.data *= 8  # for logits that bfloat16 rounds as coarsely as those of T5-XXL
    exact = copy.deepcopy(encoder).float()  # type: ignore[no-untyped-call]  # (transformers)
    fused = copy.deepcopy(encoder)
    fused.set_attn_implementation("sdpa")
    tokenizer = character_tokenizer()
    texts = TextEncoder(tokenizer, encoder, lives_on=CPU, works_on=CPU)
    ours, theirs = 0.0, 0.0
    for text in (f"a pond at dawn {number}" for number in range(30)):
        ids = tokenizer(text, return_tensors="pt").input_ids
        expected = exact(ids).last_hidden_state[0]
        ours += error(texts.encode(text).embedding, expected)
        theirs += error(fused(ids).last_hidden_state[0], expected)
    assert ours < 1.05 * theirs


# What is cut


@pytest.mark.parametrize(
    ("characters", "tokens", "is_cut"),
    [
        (0, 0, False),
        (1, 3, False),
        (253, 255, False),
        (254, 256, False),
        (255, 257, True),
        (4000, 4002, True),
    ],
)
def test_a_text_is_cut_from_the_257th_token_on(
    texts: TextEncoder, characters: int, tokens: int, *, is_cut: bool
) -> None:
    prompt = texts.encode(characters * "a")
    assert (prompt.tokens, prompt.is_cut) == (tokens, is_cut)
    assert len(prompt.embedding) == min(tokens, 256)


def test_what_is_cut_off_changes_nothing(texts: TextEncoder) -> None:
    one, other = texts.encode(FULL + "a"), texts.encode(FULL + "b")
    assert torch.equal(one.embedding, other.embedding)


def test_a_long_text_leaves_the_next_as_it_is(texts: TextEncoder) -> None:
    prompts = [texts.encode(text) for text in (FULL + "a", FULL, "a", FULL + "ab")]
    assert [prompt.tokens for prompt in prompts] == [257, 256, 3, 258]


# What is kept


def test_a_text_is_encoded_once(texts: TextEncoder, read: list[Tensor]) -> None:
    first = texts.encode("a pond")
    assert texts.encode("a lake") is not first
    assert texts.encode("a pond") is first
    assert len(read) == 2


def test_texts_that_begin_alike_are_not_mixed_up(texts: TextEncoder) -> None:
    prompts = [texts.encode(text) for text in ("", " ", "a", "a ", "A")]
    assert len({id(prompt) for prompt in prompts}) == 5
    assert texts.encode("") is prompts[0]


def test_only_the_latest_embeddings_are_kept(texts: TextEncoder, read: list[Tensor]) -> None:
    first = [texts.encode(str(number)) for number in range(MAX_KEPT)]
    texts.encode("one more")
    assert all(texts.encode(str(number)) is first[number] for number in range(1, MAX_KEPT))
    assert len(read) == MAX_KEPT + 1
    assert texts.encode("0") is not first[0]
    assert len(texts._kept) == MAX_KEPT


def test_the_text_that_was_not_asked_for_the_longest_leaves_first(texts: TextEncoder) -> None:
    negative = texts.encode("blurry")
    empty = texts.encode("")
    for number in range(3 * MAX_KEPT):
        texts.encode(str(number))
        assert texts.encode("blurry") is negative
    assert texts.encode("") is not empty


def test_a_text_that_failed_is_not_kept(texts: TextEncoder, encoder: T5EncoderModel) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError

    expected = texts.encode("a lake").embedding
    hook = encoder.register_forward_pre_hook(exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        texts.encode("a pond")
    hook.remove()
    assert len(texts.encode("a pond").embedding) == 8
    assert texts.encode("a lake").embedding is expected


# Where the weights are


@pytest.mark.parametrize("text", ["a pond", "fails"])
def test_weights_that_visit_for_a_prompt_are_at_home_afterwards(
    encoder: T5EncoderModel, text: str
) -> None:
    def as_if_elsewhere(module: nn.Module, _: object) -> None:
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
        if text == "fails":
            raise KeyboardInterrupt

    homes = {name: parameter.data_ptr() for name, parameter in encoder.named_parameters()}
    before = {name: parameter.clone() for name, parameter in encoder.named_parameters()}
    encoder.register_forward_pre_hook(as_if_elsewhere)
    texts = TextEncoder(character_tokenizer(), encoder, lives_on=CPU, works_on=SAME_CPU)
    try:
        texts.encode(text)
    except KeyboardInterrupt:
        assert text == "fails"
    for name, parameter in encoder.named_parameters():
        assert parameter.data_ptr() == homes[name]
        assert torch.equal(parameter, before[name])


# Two threads


def test_the_attention_kernel_of_another_thread_does_not_count(texts: TextEncoder) -> None:
    expected = texts.encode("a pond").embedding
    texts._kept.clear()
    with use_kernel("cudnn"):  # which no CPU has
        assert torch.equal(texts.encode("a pond").embedding, expected)


def test_threads_do_not_disturb_each_other(
    texts: TextEncoder, encoder: T5EncoderModel, read: list[Tensor]
) -> None:
    long, others = "b" + FULL + "cd", [str(number) for number in range(40)]
    expected = {text: texts.encode(text) for text in (long, *others)}
    texts._kept.clear()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(texts.encode, [*others, long, *others, long, *reversed(others)]))
    for text, prompt in zip([*others, long, *others, long, *reversed(others)], found, strict=True):
        assert prompt.tokens == expected[text].tokens
        assert torch.equal(prompt.embedding, expected[text].embedding)
    assert max(ids.shape[1] for ids in read) == MAX_TOKENS
    assert len(texts._kept) == 41


def test_a_thread_that_encodes_makes_no_other_wait(
    texts: TextEncoder, encoder: T5EncoderModel
) -> None:
    begun, goes_on = Event(), Event()

    def dawdle(module: nn.Module, _: object) -> None:
        if current_thread() is slow:
            begun.set()
            assert goes_on.wait(60)

    encoder.register_forward_pre_hook(dawdle)
    slow = Thread(target=texts.encode, args=("a pond",))
    slow.start()
    assert begun.wait(60)
    assert len(texts.encode("a pond").embedding) == 8
    goes_on.set()
    slow.join()
