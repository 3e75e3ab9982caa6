"""The requests that compile the decoder of a group before the first client's."""

from __future__ import annotations

import pytest
import torch

from models.mochi.loading.load import warm_up_requests
from models.mochi.network.ranks import GroupRanks
from models.params import TEMPORAL_FACTOR, GenerateParams


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
