"""The options of the engine in a group: the frames are those of one process with the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from models.engine import Traits
from models.mochi.loading.assemble import Options, assemble
from models.mochi.loading.load import make_parts
from models.mochi.loading.lora import Lora, read_named
from models.mochi.loading.plan import LoadPlan
from models.mochi.memory.profiles import PROFILES, MemoryPlan
from models.mochi.network import fp8
from models.mochi.network.ranks import ALONE, Ranks
from models.request.params import GenerateParams
from tests.support.models.mock_mochi import CPU, ignore, params
from tests.support.models.ranks import Group, group_of
from tests.support.models.tiny_lora import in_diffusers_format, random_halves
from tests.unit.models.mochi.network.test_fp8 import needs_products

NARROWEST = 32
"""The width of the mock's blocks, so that fp8 takes their layers."""

ASKED = params(13, negative_prompt="blurry")

SPLITTING = 0.305
"""A threshold at which the two branches alone would not skip the same steps."""


@pytest.fixture(scope="module", params=[2, 4])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    with group_of(request.param) as started:
        yield started


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> list[Lora]:
    file = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(in_diffusers_format(random_halves()), file)
    return [Lora(file, 0.3)]


def plan_of(folder: Path, **options: Any) -> LoadPlan:
    """As for a GPU, in bfloat16, but on the CPU."""
    profile = PROFILES["80gb"]
    memory = MemoryPlan(profile, "bf16", "asked for")
    traits = Traits("Mochi 1", "a card", "bf16")
    return LoadPlan(CPU, memory, Options(profile, "flash", **options), traits, folder, [])


def frames(ranks: Ranks, plan: LoadPlan, asked: GenerateParams = ASKED) -> str:
    """Their checksum, on rank 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fp8, "NARROWEST", NARROWEST)
        parts = make_parts(replace(plan, ranks=ranks))
        engine = assemble(
            parts,
            plan.options,
            plan.traits,
            CPU,
            (48, 32),
            ranks=ranks,
            loras=plan.named_loras,
        )
    if ranks.rank:
        engine.follow(asked, ignore)
        return ""
    return hashlib.sha256(b"".join(engine.generate(asked, ignore).frames)).hexdigest()


def assert_equal(group: Group, plan: LoadPlan) -> None:
    """The group makes the same frames as one process, and others than without the options."""
    expected = frames(ALONE, plan)
    assert group(frames, plan)[0] == expected
    plain = replace(plan, options=replace(plan.options, fp8=False, step_cache=0.0), loras=[])
    assert frames(ALONE, plain) != expected


def test_a_lora(group: Group, checkpoint: Path, loras: list[Lora]) -> None:
    assert_equal(group, replace(plan_of(checkpoint), loras=loras))


def test_a_lora_of_the_request(group: Group, checkpoint: Path, loras: list[Lora]) -> None:
    named = read_named({"style": loras[0].path})
    plan = replace(plan_of(checkpoint), named_loras=named)
    asked = ASKED.model_copy(update={"lora": {"style": 0.3}})
    expected = frames(ALONE, plan, asked)
    assert group(frames, plan, asked)[0] == expected
    assert group(frames, plan)[0] == frames(ALONE, plan_of(checkpoint)) != expected


@needs_products
def test_fp8(group: Group, checkpoint: Path) -> None:
    assert_equal(group, plan_of(checkpoint, fp8=True))


def test_the_step_cache(group: Group, checkpoint: Path) -> None:
    assert_equal(group, plan_of(checkpoint, step_cache=SPLITTING))
