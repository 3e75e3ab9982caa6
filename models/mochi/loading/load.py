"""Settings to a loaded engine."""

from __future__ import annotations

from pathlib import Path

import diffusers
import structlog
import torch
import transformers
from safetensors import SafetensorError

from models.cuda import GIB
from models.engine import Engine, Traits
from models.errors import EngineBrokenError, EngineUnavailableError
from models.mochi.engine import MochiEngine
from models.mochi.loading import lora
from models.mochi.loading.assemble import Options, assemble
from models.mochi.loading.plan import Prepared, prepare
from models.mochi.memory.profiles import PROFILES
from models.mochi.network.attention import choose_kernel
from models.mochi.parts import Dtypes, Parts
from models.mochi.synthetic.dummy import make_dummy
from models.mochi.synthetic.mock import HEIGHT as MOCK_HEIGHT
from models.mochi.synthetic.mock import WIDTH as MOCK_WIDTH
from models.mochi.synthetic.mock import MockEngine, write_mock_checkpoint
from models.params import HEIGHT, TEMPORAL_FACTOR, WIDTH, GenerateParams
from models.settings import EngineSettings

_log = structlog.get_logger()


def load(settings: EngineSettings, cache_dir: Path) -> Engine:
    """Load Mochi, real, dummy or mock.

    Args:
        settings: which weights, and where and how real ones are to run; mock weights run on the
            CPU, in float32 and not compiled.
        cache_dir: where mock and pulled weights and compiled code are kept; made if missing.

    Raises:
        EngineUnavailableError: it cannot run here, and starting again does not help; the text says
            what to do.
    """
    silence()
    if settings.mock:
        return _load_mock(settings, cache_dir)
    prepared = prepare(settings, cache_dir, cache_dir / "compiled")
    plan = prepared.plan
    _log.info(
        "engine.profile", profile=plan.profile.name, precision=plan.precision, reason=plan.reason
    )
    _log.info("engine.reading", folder=str(prepared.folder or "none: random numbers are drawn"))
    engine = _assembled(prepared)
    _warm_up(engine, prepared)
    return engine


def _load_mock(settings: EngineSettings, cache_dir: Path) -> Engine:
    parts = read_weights(_mock_checkpoint(cache_dir), Dtypes())
    return MockEngine(assemble_mock(parts, settings.step_cache))


def assemble_mock(parts: Parts, step_cache: float) -> MochiEngine:
    """Put the mock checkpoint's parts together, on the CPU; its frames are small and bare."""
    # Threads that wait for each other over so little work cost more than they bring, and up to
    # ten times as much where other processes want the same cores.
    torch.set_num_threads(1)
    device = torch.device("cpu")
    options = Options(PROFILES["80gb"], choose_kernel("auto", device), step_cache=step_cache)
    traits = Traits("mock weights", "CPU", "float32", lossy=options.lossy, is_mock=True)
    return assemble(parts, options, traits, device, (MOCK_WIDTH, MOCK_HEIGHT))


def make_parts(prepared: Prepared) -> Parts:
    """Read the weights, or draw them, and fuse LoRAs into them."""
    if prepared.folder is None:
        parts = make_dummy(prepared.dtypes, prepared.device)
    else:
        parts = read_weights(prepared.folder, prepared.dtypes)
    lora.fuse(parts.transformer, prepared.loras)
    return parts


def _assembled(prepared: Prepared) -> MochiEngine:
    try:
        return assemble(
            make_parts(prepared),
            prepared.options,
            prepared.traits,
            prepared.device,
            (WIDTH, HEIGHT),
            weights_stamp=prepared.weights_stamp,
        )
    except torch.OutOfMemoryError as error:
        free, total = (size / GIB for size in torch.cuda.mem_get_info(prepared.device))
        raise EngineUnavailableError(
            f"The weights do not fit on {prepared.device} with the profile "
            f"{prepared.plan.profile.name}: {free:.1f} of its {total:.1f} GiB are left. Choose a "
            "smaller profile with MOCHI_PROFILE, or another card with MOCHI_DEVICE=cuda:N."
        ) from error
    except RuntimeError as error:
        raise EngineUnavailableError(
            f"The weights cannot be put in their places: {error}\nIs main memory too small, or the "
            f"share of it that may be pinned (ulimit -l)? The profile {prepared.plan.profile.name} "
            "keeps some weights there; 80gb keeps none."
        ) from error


def _warm_up(engine: MochiEngine, prepared: Prepared) -> None:
    """Run everything once, so that no request waits for compilers and first launches."""
    if prepared.options.compiles:
        _log.info("engine.compiling", hint="minutes the first time, less at later starts")
    try:
        for params in warm_up_requests(prepared.plan.profile.chunk):
            for _ in engine.generate(params, lambda _step, _steps: None).frames:
                pass
    except EngineBrokenError:
        raise  # starting again may help
    except Exception as error:
        _log.exception("engine.unfit")
        raise EngineUnavailableError(
            f"The engine does not run on {prepared.traits.device}: {error}\nThe log says where. "
            "Type --no-compile if compiling failed, --attention flash if attention did, or a "
            f"smaller --profile than {prepared.plan.profile.name} if the memory did not suffice."
        ) from error


def warm_up_requests(chunk: int) -> list[GenerateParams]:
    """Requests that between them need every graph there is.

    Args:
        chunk: latent frames decoded at a time. The first chunk of a clip may be any shorter, and
            each length of it is compiled. So are texts of no token, of one, and of more.
    """
    return [
        GenerateParams(
            prompt="A red panda drinks tea",
            negative_prompt=negative_prompt,
            frames=TEMPORAL_FACTOR * (latent_frames - 1) + 1,
            steps=10,
        )
        for latent_frames in range(chunk + 1, 2 * chunk + 1)
        for negative_prompt in ("", " ")
    ]


def silence() -> None:
    """Keep progress bars, and warnings that quote prompts, out of the worker's log.

    What is left goes through the worker's own log, and so says which request it belongs to.
    """
    for library in (diffusers, transformers):
        library.utils.logging.disable_default_handler()
        library.utils.logging.enable_propagation()
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _mock_checkpoint(cache_dir: Path) -> Path:
    try:
        return write_mock_checkpoint(cache_dir)
    except (OSError, SafetensorError) as error:
        raise EngineUnavailableError(
            f"The mock weights cannot be written to {cache_dir}: {error}"
        ) from error


def read_weights(folder: Path, dtypes: Dtypes) -> Parts:
    """Load a folder, into main memory.

    Raises:
        EngineUnavailableError: something in it is missing or damaged; the text says what to do.
    """
    try:
        return Parts.read(folder, dtypes)
    except (OSError, ValueError, SafetensorError) as error:
        raise EngineUnavailableError(
            f"The weights in {folder} cannot be loaded: {error}\n"
            "`mochi-server weights verify` finds damaged files, `mochi-server weights pull` "
            "fetches them again."
        ) from error
