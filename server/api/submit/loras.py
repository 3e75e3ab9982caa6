"""The LoRAs that requests may name: those of the live workers."""

from __future__ import annotations

from collections.abc import Iterable

from models.errors import InvalidParametersError
from models.request.params import GenerateParams
from server.api.call import Call
from worker.store.presence import LiveWorker


async def lacking_loras(call: Call, params: GenerateParams) -> InvalidParametersError | None:
    """The refusal of a request whose LoRAs no live worker has; None if one has them all."""
    workers = [
        worker
        for worker in await call.services.store.live_workers()
        if params.model in worker.models
    ]
    asked = params.lora or {}
    if any(worker.has_loras(asked) for worker in workers):
        return None
    return InvalidParametersError.of({"lora": f"`lora`: {_problem(asked, workers)}"})


def offered(workers: Iterable[LiveWorker]) -> list[str]:
    """Names of the LoRAs that some of the workers have."""
    return sorted({name for worker in workers for name in worker.engine.loras})


def _problem(asked: Iterable[str], workers: list[LiveWorker]) -> str:
    there = offered(workers)
    if not there:
        return (
            "no live worker has a LoRA. Leave it out, or ask your operator for a worker with "
            "MOCHI_LORAS."
        )
    names = _listed(there)
    if unknown := [name for name in asked if name not in there]:
        return f"no live worker has {_listed(unknown)}. There are: {names}."
    sets = " or ".join(_listed(worker.engine.loras) for worker in workers if worker.engine.loras)
    return f"no live worker has all of {_listed(asked)}. One has {sets}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
