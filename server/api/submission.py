"""The header `x-mock-scenario`: whether it is obeyed, and what the record then says."""

from __future__ import annotations

from typing import Any

from models.mock.scenario import SCENARIO, Scenario
from server.api.call import Call
from server.errors import BadHeaderError


def with_scenario(call: Call, body: dict[str, Any]) -> dict[str, Any]:
    """The body, with the header as the field that it stands for.

    Raises:
        BadHeaderError: there are two, and they differ.
    """
    wishes = call.request.headers.getlist(SCENARIO)
    if not wishes:
        return body
    if any(wish != body.get(SCENARIO, wishes[0]) for wish in wishes) or len({*wishes}) > 1:
        raise BadHeaderError(f"There are two different `{SCENARIO}`: send one.")
    return {**body, SCENARIO: wishes[0]}


async def scenario_fields(call: Call, body: dict[str, Any]) -> dict[str, str]:
    """Fields of the record for the wished-for scenario; none where there is none or real weights.

    Raises:
        InvalidParametersError: there is no such scenario.
    """
    if SCENARIO not in body or not await _are_mocks(call):
        return {}
    retention_seconds = call.services.settings.retention_seconds
    scenario = Scenario.parse(body[SCENARIO], retention_seconds=retention_seconds)
    fields = {"scenario": str(body[SCENARIO])}
    if scenario.name == "expire":
        fields["retention_ms"] = f"{scenario.seconds * 1000:.0f}"
    return fields


async def _are_mocks(call: Call) -> bool:
    """Whether every worker that may run it has no real weights. Before one lives, settings say."""
    workers = await call.services.intake.live_workers()
    if workers:
        return all(worker.engine.is_mock for worker in workers)
    settings = call.services.settings
    return settings.mock or settings.engine == "fake"
