"""Chooses the output store."""

from __future__ import annotations

from worker.outputs.base import Outputs
from worker.outputs.local import LocalOutputs
from worker.settings import WorkerSettings


def open_outputs(settings: WorkerSettings, *, patience_seconds: float) -> Outputs:
    """The store that `settings.outputs` names. Nothing is written or asked yet.

    A call to a store on the network takes at most `patience_seconds`. Raises OutputsUnusableError
    for a bad value of the store's variables.
    """
    folder = LocalOutputs(settings.outputs_dir, min_free_mib=settings.min_free_mib)
    if not settings.outputs:
        return folder
    from worker.outputs.s3 import open_s3  # noqa: PLC0415 (loads its library)

    return open_s3(settings.outputs, drafts=folder, patience_seconds=patience_seconds)
