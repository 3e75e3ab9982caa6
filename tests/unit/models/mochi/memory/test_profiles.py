from __future__ import annotations

import re
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.errors import EngineUnavailableError
from models.mochi.memory import profiles as memory
from models.mochi.memory.profiles import PROFILES, MemoryPlan, Precision, ProfileName, plan_memory
from models.mochi.network import fp8
from models.mochi.network.modulation import Conditioner
from models.mochi.network.transformer import Core
from models.mochi.parts import Dtypes
from models.mochi.synthetic.dummy import empty_dummy

NAMES: tuple[ProfileName, ...] = ("80gb", "48gb", "24gb", "offload")
PRECISIONS: tuple[Precision, ...] = ("reference", "bf16")
GIB = 2**30

sizes = st.floats(0, 200)
precisions = st.sampled_from(("auto", *PRECISIONS))


def choose(
    free_gib: float,
    profile: ProfileName | Literal["auto"] = "auto",
    precision: Precision | Literal["auto"] = "auto",
) -> tuple[str, str]:
    plan = plan_memory(free_gib, profile, precision)
    return plan.profile.name, plan.precision


# Cards


@pytest.mark.parametrize(
    ("card", "free_gib", "profile"),
    [
        ("H200", 139.8, "80gb"),
        ("H100 or A100 80 GB", 79.1, "80gb"),
        ("A6000 48 GB", 47.4, "80gb"),
        ("L40S 48 GB with ECC", 44.5, "48gb"),
        ("RTX 4090 24 GB", 23.6, "24gb"),
        ("L4 or A10G 24 GB with ECC, without CUDA's own", 21.5, "offload"),
        ("RTX 4080 16 GB", 15.7, "offload"),
        ("RTX 4070 12 GB", 11.6, "offload"),
    ],
)
def test_a_card_gets_the_largest_profile_that_fits(
    card: str, free_gib: float, profile: str
) -> None:
    assert choose(free_gib)[0] == profile, card


@pytest.mark.parametrize("free_gib", [79.1, 47.4, 31.4, 23.6, 22.0, 15.7, 11.6])
def test_every_card_gets_the_reference_precision(free_gib: float) -> None:
    assert choose(free_gib)[1] == "reference"


def test_on_a_card_of_32_gb_no_block_is_fetched() -> None:
    assert not plan_memory(31.4, "auto", "auto").profile.streamed


def test_no_more_blocks_are_fetched_than_the_card_makes_necessary() -> None:
    counts = [plan_memory(free, "auto", "auto").profile.streamed for free in (21.5, 15.7, 9.3)]
    assert counts == [4, 24, 47]
    assert plan_memory(21.5, "offload", "auto").profile.streamed == 47


def test_fetched_blocks_are_no_part_of_the_name_that_checkpoints_have() -> None:
    assert repr(plan_memory(21.5, "auto", "auto").profile) == repr(PROFILES["offload"])


def test_fp8_needs_less_and_the_step_cache_more() -> None:
    plain, small, large = (
        plan_memory(80, "24gb", "auto", fp8=fp8, step_cache=step_cache).peak_gib
        for fp8, step_cache in ((False, False), (True, False), (False, True))
    )
    assert small == pytest.approx(plain - 5.0, abs=0.1)
    assert large == pytest.approx(plain + 1.5)
    assert plan_memory(20, "auto", "auto", fp8=True).profile.name == "24gb"


@pytest.mark.parametrize("profile", [name for name in NAMES if name != "offload"])
def test_adapters_need_their_buffers_in_every_block(profile: ProfileName) -> None:
    needs = PROFILES[profile].gib("reference")
    with_adapters = PROFILES[profile].gib("reference", adapters=0.01)
    assert with_adapters == pytest.approx(needs + 0.01 * memory.BLOCKS)


def test_adapters_of_fetched_blocks_are_in_main_memory() -> None:
    needs = PROFILES["offload"].gib("bf16")
    in_slots = memory.BLOCKS - PROFILES["offload"].streamed + memory.SLOTS
    with_adapters = PROFILES["offload"].gib("bf16", adapters=0.01)
    assert with_adapters == pytest.approx(needs + 0.01 * in_slots)


@pytest.mark.parametrize("profile", NAMES)
def test_a_card_of_a_group_needs_more_for_the_exchange(profile: ProfileName) -> None:
    needs = PROFILES[profile].gib("reference")
    assert PROFILES[profile].gib("reference", group=True) == pytest.approx(needs + 1.0)
    assert plan_memory(needs + 0.5, "auto", "auto").profile.name == profile
    assert plan_memory(needs + 0.5, profile, "reference", group=True).peak_gib > needs + 0.5


def test_a_group_of_cards_of_24_gb_fetches_no_block() -> None:
    assert plan_memory(23.6, "auto", "auto", group=True).profile.name == "24gb"


def test_a_card_of_6_gb_is_too_small() -> None:
    with pytest.raises(EngineUnavailableError):
        choose(6.0)


# Choosing


def rank(free_gib: float, precision: Precision | Literal["auto"]) -> int:
    """Of the best plan, the more the better."""
    try:
        plan = plan_memory(free_gib, "auto", precision)
    except EngineUnavailableError:
        return -1000
    order = [each for kind in memory._PRECISIONS for each in ((kind, one) for one in memory._ALL)]
    return -order.index((plan.precision, plan.profile))


@settings(deadline=None)
@given(sizes, sizes, precisions)
def test_more_memory_never_gives_a_worse_plan(
    one: float, other: float, precision: Precision | Literal["auto"]
) -> None:
    less, more = sorted((one, other))
    assert rank(less, precision) <= rank(more, precision)


@settings(deadline=None)
@given(sizes, precisions)
def test_what_is_chosen_fits_and_what_fits_is_chosen(
    free_gib: float, precision: Precision | Literal["auto"]
) -> None:
    kinds = [kind for kind in PRECISIONS if precision in {"auto", kind}]
    fits = any(PROFILES[name].gib(kind) <= free_gib for name in NAMES for kind in kinds)
    try:
        plan = plan_memory(free_gib, "auto", precision)
    except EngineUnavailableError:
        assert not fits
    else:
        assert plan.profile.gib(plan.precision) <= free_gib
        assert plan.precision in kinds


@settings(deadline=None)
@given(sizes, st.sampled_from(NAMES), precisions)
def test_a_named_profile_and_precision_are_kept_to_however_small_the_card(
    free_gib: float, profile: ProfileName, precision: Precision | Literal["auto"]
) -> None:
    name, kind = choose(free_gib, profile, precision)
    assert name == profile
    assert precision in {"auto", kind}


@pytest.mark.parametrize("profile", NAMES)
def test_a_named_profile_gets_the_best_precision_that_fits(profile: ProfileName) -> None:
    needs = PROFILES[profile].gib("reference")
    saves = PROFILES[profile].gib("bf16") < needs
    assert saves == (PROFILES[profile].text != "cpu")
    assert choose(needs + 0.1, profile) == (profile, "reference")
    assert choose(needs - 0.1, profile) == (profile, "bf16" if saves else "reference")
    assert choose(1.0, profile) == (profile, "bf16" if saves else "reference")


def test_float32_comes_before_more_on_the_gpu() -> None:
    assert choose(PROFILES["80gb"].gib("reference") - 0.1) == ("48gb", "reference")
    assert choose(PROFILES["48gb"].gib("reference") - 0.1) == ("24gb", "reference")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_smaller_profile_needs_less(precision: Precision) -> None:
    needs = [PROFILES[name].gib(precision) for name in NAMES]
    assert needs == sorted(set(needs), reverse=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_text_encoder_that_visits_has_left_when_the_work_begins(precision: Precision) -> None:
    elsewhere, visiting = (PROFILES[name].gib(precision) for name in ("24gb", "48gb"))
    assert visiting < elsewhere + memory.TEXT[precision]


# What is said


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+\.\d", text)


def needed(plan: MemoryPlan) -> str:
    return f"{plan.profile.gib(plan.precision):.1f}"


@pytest.mark.parametrize("free_gib", [79.13, 47.4, 23.6, 11.6])
def test_the_reason_has_what_is_free_and_what_is_needed(free_gib: float) -> None:
    plan = plan_memory(free_gib, "auto", "auto")
    assert numbers(plan.reason) == [f"{free_gib:.1f}", needed(plan)]


def test_the_reason_says_when_a_profile_may_be_too_large() -> None:
    plan = plan_memory(23.6, "80gb", "reference")
    assert plan.reason.startswith("asked for, though 23.6 GiB are free")
    assert numbers(plan.reason) == ["23.6", needed(plan)]


def test_a_card_that_is_too_small_is_told_the_numbers_and_the_remedies() -> None:
    with pytest.raises(EngineUnavailableError) as caught:
        choose(6.04)
    text = str(caught.value)
    assert numbers(text) == ["6.0", f"{PROFILES['offload'].gib('bf16'):.1f}"]
    assert "MOCHI_DEVICE=cuda:N" in text
    assert "MOCHI_PROFILE=offload" in text
    assert choose(6.04, "offload") == ("offload", "reference")


# The numbers


@pytest.fixture(scope="module")
def sizes_of_weights() -> dict[str, float]:
    """In GiB in bfloat16, counted from the full-size model."""

    def gib(module: nn.Module) -> float:
        return 2 * sum(parameter.numel() for parameter in module.parameters()) / GIB

    parts = empty_dummy(Dtypes())
    text, vae = gib(parts.text_encoder), gib(parts.vae.decoder)
    with torch.device("meta"):
        conditioner, core = Conditioner(parts.transformer), Core(parts.transformer)
    return {
        "text": text,
        "vae": vae,
        "core": gib(core) + gib(conditioner.embed),
        "modulation": gib(conditioner) - gib(conditioner.embed),
        "block": gib(core.blocks[0]),
        "fp8": sum(
            each.weight.numel()
            for each in core.blocks[0].modules()
            if isinstance(each, nn.Linear) and fp8._is_big(each)
        )
        / GIB,
    }


def test_weights_take_what_is_counted_for_them(sizes_of_weights: dict[str, float]) -> None:
    for name, constant in (
        ("text", memory.TEXT["bf16"]),
        ("text", memory.TEXT["reference"] / 2),
        ("vae", memory.VAE),
        ("core", memory.CORE),
        ("modulation", memory.MODULATION),
    ):
        assert constant == pytest.approx(sizes_of_weights[name], abs=0.1), name
    assert pytest.approx(sizes_of_weights["block"], abs=0.005) == memory.BLOCK
    assert pytest.approx(sizes_of_weights["fp8"], abs=0.01) == memory.FP8_SAVES
