"""Decoding by a group of cards, beside the same by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from models.mochi.network.ranks import GroupRanks
from models.mochi.network.vae import Decoder
from tests.support.models.ranks import Group, group_of
from tests.support.models.tiny_vae import joined, make_latents, make_vae

CASES = ((1, 1), (5, 1), (3, 2), (9, 2))
"""Latent frames of a clip, and of a chunk: less than one round, and several."""


@pytest.fixture(scope="module", params=[2, 4])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    with group_of(request.param) as started:
        yield started


def decoded(ranks: GroupRanks, length: int, chunk: int) -> Tensor:
    decoder = Decoder(make_vae(torch.float64), chunk=chunk)
    decoder.join(ranks)
    return joined(decoder.decode(make_latents(length)))


def check(group: Group, length: int, chunk: int) -> None:
    expected = joined(Decoder(make_vae(torch.float64), chunk=chunk).decode(make_latents(length)))
    frames, *others = group(decoded, length, chunk)
    assert torch.equal(frames[: len(expected)], expected)
    assert not any(map(len, others))


@pytest.mark.parametrize(("length", "chunk"), CASES)
def test_a_group_decodes_as_one_card_does(group: Group, length: int, chunk: int) -> None:
    check(group, length, chunk)


@pytest.mark.slow
@pytest.mark.parametrize("size", [6, 8])
def test_large_groups_decode_clips_of_every_length(size: int) -> None:
    with group_of(size) as group:
        for length in (1, 2, 5, 9, 19, 28):
            for chunk in (1, 2):
                check(group, length, chunk)


def compiled(ranks: GroupRanks, backend: str, lengths: tuple[int, ...]) -> tuple[int, int]:
    """The greatest difference that compiling makes, of 256, and the number of graphs."""
    torch._dynamo.reset()
    counters.clear()
    plain, fast = (Decoder(make_vae(torch.float32), chunk=2) for _ in range(2))
    for decoder in (plain, fast):
        decoder.join(ranks)
    fast.compile(backend)
    worst = 0
    for length in lengths:
        frames = [joined(decoder.decode(make_latents(length))).int() for decoder in (plain, fast)]
        worst = max(worst, *(frames[0] - frames[1]).abs().flatten().tolist(), 0)
    return worst, counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "lengths"), [("aot_eager", (6, 8, 28)), ("inductor", (6, 8))])
def test_the_exchange_is_part_of_the_compiled_graphs(
    backend: str, lengths: tuple[int, ...]
) -> None:
    with group_of(2) as group:
        results = group(compiled, backend, lengths)
    assert max(worst for worst, _ in results) <= 1  # compiled norms round differently
    assert [graphs for _, graphs in results] == [3, 3]
