"""Settings to an engine: the one place that chooses. Imports torch only when Mochi is chosen."""

from __future__ import annotations

from pathlib import Path

from models.device import Meter
from models.engine import Engine
from models.errors import not_installed
from models.mock.fake_engine import FakeEngine
from models.settings import EngineSettings


def build_engine(settings: EngineSettings, cache_dir: Path) -> Engine:
    """Build the engine that the settings ask for, with its weights loaded.

    Args:
        settings: which engine, which weights.
        cache_dir: a folder of ours, made if missing, where mock weights are kept between starts.

    Raises:
        EngineUnavailableError: this machine lacks what the engine needs; the text says what to do.
    """
    if settings.engine == "fake":
        return FakeEngine(settings.fake_step_seconds)
    try:
        from models.mochi.loading.load import load  # noqa: PLC0415 - torch takes seconds to import
    except ImportError as error:
        raise not_installed(error) from error
    return load(settings, cache_dir)


def build_meter(settings: EngineSettings) -> Meter | None:
    """What reads the card of the engine that was built; None where there is none."""
    if settings.mock or settings.engine == "fake":
        return None
    from models.cuda import CudaMeter  # noqa: PLC0415 - as above

    return CudaMeter(settings.device)
