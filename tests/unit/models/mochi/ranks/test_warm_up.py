"""The requests that compile a group's graphs before the first client's."""

from __future__ import annotations

import pytest
import torch

from models.mochi.loading.load import warm_up_requests
from models.mochi.network.ranks import GroupRanks
from models.mochi.synthetic.mock import character_tokenizer
from models.request.params import TEMPORAL_FACTOR, GenerateParams


def lengths(cards: int, chunk: int, frames: int) -> list[int]:
    """Latent frames of each chunk that a card of a group decodes."""
    ranks = GroupRanks.__new__(GroupRanks)  # its processes are not needed
    ranks.rank, ranks.cards = 0, cards
    model_frames = GenerateParams(prompt="a pond", frames=frames).model_frames
    latents = torch.zeros(1, 1, (model_frames - 1) // TEMPORAL_FACTOR + 1, 1, 1)
    return [part.shape[2] for part in ranks.chunks(latents, chunk)]


@pytest.mark.parametrize("cards", [2, 4, 6, 8])
@pytest.mark.parametrize("chunk", [1, 2])
def test_every_graph_of_the_decoder_is_compiled_before_it_is_needed(cards: int, chunk: int) -> None:
    def graphs(frames: int) -> set[tuple[bool, int]]:
        first, *later = lengths(cards, chunk, frames)
        return {(True, first), *((False, length) for length in later)}

    warmed = set().union(*(graphs(each.frames) for each in warm_up_requests(chunk, cards)))
    needed = set().union(*map(graphs, range(1, 161)))
    assert warmed == needed


@pytest.mark.parametrize("cards", [2, 4, 6, 8])
def test_every_card_sees_texts_of_no_token_of_one_and_of_more(cards: int) -> None:
    tokenizer = character_tokenizer()

    def kinds(texts: list[str]) -> set[int]:
        return {min(len(tokenizer(text).input_ids), 2) if text else 0 for text in texts}

    requests = warm_up_requests(1, cards)
    assert kinds([each.negative_prompt for each in requests]) == {0, 1, 2}
    assert kinds([each.prompt for each in requests]) == {2}  # no prompt is blank
