"""Settings to a loaded engine. Says what is missing, all of it, before any long download."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import diffusers
import structlog
import torch
import transformers
from safetensors import SafetensorError

from models import weights
from models.engine import Engine, Traits
from models.errors import EngineUnavailableError
from models.mochi import fp8, lora
from models.mochi.assemble import Options, assemble
from models.mochi.attention import choose_kernel
from models.mochi.compiling import keep_on_disk
from models.mochi.dummy import make_dummy
from models.mochi.engine import MochiEngine
from models.mochi.memory import PROFILES, Plan, choose_plan
from models.mochi.mock import HEIGHT as MOCK_HEIGHT
from models.mochi.mock import WIDTH as MOCK_WIDTH
from models.mochi.mock import MockEngine, write_mock_checkpoint
from models.mochi.parts import Dtypes, Parts
from models.params import HEIGHT, TEMPORAL_FACTOR, WIDTH, GenerateParams
from models.settings import EngineSettings

PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
"""Of a folder of weights. Without the folder `tokenizer`, say, an empty one would be made up."""

DUMMY = "dummy"
GIB = 2**30

_log = structlog.get_logger()


def load(settings: EngineSettings, cache_dir: Path) -> Engine:
    """Load Mochi, real, dummy or mock.

    Args:
        settings: which weights, and where and how real ones are to run; mock weights run on the
            CPU, in float32 and not compiled.
        cache_dir: where mock and pulled weights and compiled code are kept; made if missing.

    Raises:
        EngineUnavailableError: no such device, no such weights; the text says what to type.
    """
    silence()
    if settings.mock:
        return _load_mock(settings, cache_dir)
    _check(settings, cache_dir)
    device = torch.device(settings.device)
    torch.cuda.set_device(device)  # streams and events are those of the current device
    keep_on_disk(cache_dir / "compiled")
    # Videos of many lengths would otherwise leave gaps in the GPU's memory that fit nothing.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    plan = choose_plan(
        torch.cuda.mem_get_info(device)[0] / GIB, settings.profile, settings.precision
    )
    _log.info(
        "engine.profile", profile=plan.profile.name, precision=plan.precision, reason=plan.reason
    )
    engine = _assemble(settings, _parts(settings, plan, cache_dir, device), plan, device)
    _warm_up(engine, plan.profile.chunk, compiles=settings.compile)
    return engine


def _load_mock(settings: EngineSettings, cache_dir: Path) -> Engine:
    # Threads that wait for each other over so little work cost more than they bring, and up to
    # ten times as much where other processes want the same cores.
    torch.set_num_threads(1)
    parts = read_weights(_mock_checkpoint(cache_dir), Dtypes())
    device = torch.device("cpu")
    options = Options(
        PROFILES["80gb"], choose_kernel("auto", device), step_cache=settings.step_cache
    )
    traits = Traits("mock weights", "CPU", "float32", lossy=options.lossy)
    return MockEngine(assemble(parts, options, traits, device, (MOCK_WIDTH, MOCK_HEIGHT)))


def _parts(settings: EngineSettings, plan: Plan, cache_dir: Path, device: torch.device) -> Parts:
    dtypes = plan_dtypes(plan)
    if settings.weights == DUMMY:
        parts = make_dummy(dtypes, device)
    else:
        folder = weights.find(settings.weights, settings.revision, cache_dir)
        assert folder is not None  # noqa: S101 (`_check` has looked)
        _log.info("engine.reading", folder=str(folder))
        parts = read_weights(folder, dtypes)
    lora.fuse(parts.transformer, lora.parse(settings.lora))
    return parts


def plan_dtypes(plan: Plan) -> Dtypes:
    """What each part is loaded as. T5 on a CPU is fastest, too, in float32."""
    is_reference = plan.precision == "reference"
    return Dtypes(
        text=torch.float32 if is_reference or plan.profile.text == "cpu" else torch.bfloat16,
        transformer=torch.bfloat16,
        vae=torch.float32 if is_reference else torch.bfloat16,
    )


def _assemble(
    settings: EngineSettings, parts: Parts, plan: Plan, device: torch.device
) -> MochiEngine:
    if settings.fp8:
        fp8.check(device)
    options = Options(
        plan.profile,
        choose_kernel(settings.attention, device),
        compiles=settings.compile,
        fp8=settings.fp8,
        step_cache=settings.step_cache,
    )
    name = "dummy weights" if settings.weights == DUMMY else "Mochi 1"
    card = torch.cuda.get_device_name(device)
    traits = Traits(name, card, plan.precision, plan.profile.name, options.lossy)
    try:
        return assemble(parts, options, traits, device, (WIDTH, HEIGHT))
    except torch.OutOfMemoryError as error:
        free, total = (size / GIB for size in torch.cuda.mem_get_info(device))
        raise EngineUnavailableError(
            f"The weights do not fit on {settings.device} with the profile {plan.profile.name}: "
            f"{free:.1f} of its {total:.1f} GiB are left. Choose a smaller profile with "
            "MOCHI_PROFILE, or another card with MOCHI_DEVICE=cuda:N."
        ) from error


def _warm_up(engine: MochiEngine, chunk: int, *, compiles: bool) -> None:
    """Run everything once, so that no request waits for compilers and first launches.

    Args:
        engine: all of it.
        chunk: latent frames decoded at a time. The first chunk of a clip may be any shorter, and
            each length of it is compiled.
        compiles: whether this takes minutes.
    """
    if compiles:
        _log.info("engine.compiling", hint="minutes the first time, less at later starts")
    for latent_frames in range(chunk + 1, 2 * chunk + 1):
        frames = TEMPORAL_FACTOR * (latent_frames - 1) + 1
        params = GenerateParams(prompt="A red panda drinks tea", frames=frames, steps=10)
        for _ in engine.generate(params, lambda _step, _steps: None).frames:
            pass


def silence() -> None:
    """Keep progress bars, and warnings that quote prompts, out of the worker's log."""
    for library in (diffusers, transformers):
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


def _check(settings: EngineSettings, cache_dir: Path) -> None:
    problems = [
        *_device_problems(settings.device),
        *_weights_problems(settings, cache_dir),
        *_compiler_problems(settings),
    ]
    if problems:
        hint = "To try the server without a GPU and without weights: mochi-server up --mock"
        raise EngineUnavailableError("\n".join([*problems, hint]))


def _device_problems(device: str) -> list[str]:
    count = torch.cuda.device_count()
    if count == 0:
        return [
            "There is no CUDA device here, and real weights need one: check that `nvidia-smi` "
            "lists a GPU and that torch is a CUDA build "
            f"(python -c 'import torch; print(torch.version.cuda)'; here: {torch.version.cuda})."
        ]
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        return [f"MOCHI_DEVICE={device} does not exist: the last one here is cuda:{count - 1}."]
    return []


def _weights_problems(settings: EngineSettings, cache_dir: Path) -> list[str]:
    if settings.weights == DUMMY:
        return []
    folder = weights.find(settings.weights, settings.revision, cache_dir)
    if folder is None:
        return [weights.absent(settings.weights, settings.revision, cache_dir)]
    missing = ", ".join(part for part in PARTS if not (folder / part).exists())
    if not missing:
        return []
    return [
        f"The folder MOCHI_WEIGHTS={settings.weights} lacks {missing}: it must hold the weights in "
        "the layout of diffusers, as `mochi-server weights pull` writes them."
    ]


def _compiler_problems(settings: EngineSettings) -> list[str]:
    """Triton builds what starts its kernels with the compiler that it finds in this way."""
    if not settings.compile or any(map(shutil.which, (os.environ.get("CC", ""), "gcc", "clang"))):
        return []
    return [
        "Compiling the model for the GPU needs a C compiler, and there is none here: install one "
        "(Debian, Ubuntu: apt install gcc python3-dev), or type --no-compile to run slower."
    ]
