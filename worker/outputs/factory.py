"""Settings to a store of videos: the one place that chooses."""

from __future__ import annotations

from worker.outputs.base import Outputs
from worker.outputs.local import LocalOutputs
from worker.settings import WorkerSettings


def open_outputs(settings: WorkerSettings, *, patience_seconds: float) -> Outputs:
    """The store that the settings choose. Nothing is written or asked yet.

    Args:
        settings: `MOCHI_OUTPUTS` chooses.
        patience_seconds: what the longest call may take, where the store is on the network.

    Raises:
        OutputsUnusableError: a variable for it has a bad value.
    """
    folder = LocalOutputs(settings.outputs_dir)
    if not settings.outputs:
        return folder
    from worker.outputs.s3 import open_s3  # noqa: PLC0415 (only who uses it loads its library)

    return open_s3(settings.outputs, drafts=folder, patience_seconds=patience_seconds)
