"""The estimated seconds of a step, against what is known of Mochi's cost."""

from __future__ import annotations

import pytest

from models.mock.card_speed import (
    INSTANT,
    PEAK_TFLOPS,
    SPEEDUPS,
    SUSTAINED,
    WATTS,
    MockSpeed,
    forward_tflop,
)
from models.request.params import GenerateParams
from tests.bench.engine_counts.groups import NVLINK, Shape, step_seconds

TFLOP = {49: 282, 85: 603, 160: 1668}
"""Of one pass through the transformer, by frames asked for: as counted on the full-size model."""


def ask(frames: int) -> GenerateParams:
    return GenerateParams(prompt="a pond", frames=frames)


@pytest.mark.parametrize(("frames", "tflop"), TFLOP.items())
def test_the_cost_of_a_pass_is_what_was_counted(frames: int, tflop: float) -> None:
    assert forward_tflop(ask(frames)) == pytest.approx(tflop, rel=0.01)


def test_a_step_is_two_passes_at_the_rate_that_a_card_sustains() -> None:
    seconds = MockSpeed.parse("h100").step_seconds(ask(49))
    assert seconds == pytest.approx(2 * TFLOP[49] / (SUSTAINED * 989), rel=0.01)


@pytest.mark.parametrize("gpus", SPEEDUPS)
def test_gpus_that_share_a_video_are_as_fast_as_the_estimate_for_them(gpus: int) -> None:
    alone, shared = (MockSpeed.parse("h100", each).step_seconds(ask(49)) for each in (1, gpus))
    expected = step_seconds(Shape(14_310), 1, NVLINK) / step_seconds(Shape(14_310), gpus, NVLINK)
    assert alone / shared == pytest.approx(expected, abs=0.05)


def test_every_card_takes_longer_for_more_frames_and_a_part_of_it_when_compressed() -> None:
    for card in PEAK_TFLOPS:
        short, long = (MockSpeed.parse(card).step_seconds(ask(frames)) for frames in (7, 160))
        assert 0 < short < long
        compressed = MockSpeed.parse(f"{card}/60").step_seconds(ask(160))
        assert compressed == pytest.approx(long / 60)


def test_instant_takes_no_time() -> None:
    assert MockSpeed.parse(INSTANT).step_seconds(ask(160)) == 0


@pytest.mark.parametrize("gpus", SPEEDUPS)
def test_a_step_uses_the_power_of_every_card_as_long_as_it_takes(gpus: int) -> None:
    for card in PEAK_TFLOPS:
        speed = MockSpeed.parse(card, gpus)
        expected = WATTS[card] * gpus * speed.step_seconds(ask(49))
        assert speed.step_joules(ask(49)) == pytest.approx(expected)


def test_a_simulation_that_is_faster_uses_no_less_energy_and_none_is_not_simulated() -> None:
    real, fast = (MockSpeed.parse(text).step_joules(ask(49)) for text in ("h100", "h100/60"))
    assert real == fast
    assert MockSpeed.parse(INSTANT).step_joules(ask(49)) is None
