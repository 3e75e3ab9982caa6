"""What a mock scenario may be."""

from __future__ import annotations

import pytest

from models.errors import InvalidParametersError
from models.mock.scenario import Scenario

GOOD = {
    "fail": Scenario("fail"),
    "blocked": Scenario("blocked"),
    "out_of_memory": Scenario("out_of_memory"),
    "crash": Scenario("crash"),
    "slow:0": Scenario("slow"),
    "slow:2.5": Scenario("slow", 2.5),
    "slow:3600": Scenario("slow", 3600),
    "expire:1": Scenario("expire", 1),
    "expire:60": Scenario("expire", 60),
}
BAD: list[object] = [
    *("", " ", "FAIL", "fail ", "fail:1", "slow", "slow:", "slow:-1", "slow:1e3", "slow:nan"),
    *("slow:3601", "slow:٣", "expire", "expire:0", "expire:0.9", "expire:61", "expire:inf"),
    *("fail\n", "crash,fail", None, 1, True, [], ["fail"], {}),
]
BAD_OF_TESTS = ["fail:", "warn", "warn:", "bug:1", "hang:1", "signal", "signal:", "signal:SIGNAL"]


@pytest.mark.parametrize(("text", "scenario"), GOOD.items())
def test_each_is_read(text: str, scenario: Scenario) -> None:
    assert Scenario.parse(text, retention_seconds=60) == scenario


OF_TESTS = {
    "fail:the lens cap was on": Scenario("fail", text="the lens cap was on"),
    "warn:a: b": Scenario("warn", text="a: b"),
    "bug": Scenario("bug"),
    "hang": Scenario("hang"),
    "freeze": Scenario("freeze"),
    "signal:SIGKILL": Scenario("signal", text="SIGKILL"),
}


@pytest.mark.parametrize(("text", "scenario"), OF_TESTS.items())
def test_those_of_this_projects_tests_are_read_for_them_alone(
    text: str, scenario: Scenario
) -> None:
    assert Scenario.parse(text, of_tests=True) == scenario
    with pytest.raises(InvalidParametersError):
        Scenario.parse(text)


@pytest.mark.parametrize("text", [*(bad for bad in BAD if bad != "fail:1"), *BAD_OF_TESTS])
def test_all_else_is_refused_to_tests_as_well(text: object) -> None:
    with pytest.raises(InvalidParametersError):
        Scenario.parse(text, retention_seconds=60, of_tests=True)


@pytest.mark.parametrize("text", BAD)
def test_all_else_is_refused_with_the_list(text: object) -> None:
    with pytest.raises(InvalidParametersError) as refused:
        Scenario.parse(text, retention_seconds=60)
    for name in ("fail", "blocked", "out_of_memory", "crash", "slow:SECONDS", "(1 to 60)"):
        assert name in str(refused.value)
