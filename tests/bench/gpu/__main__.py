"""The first figures of the engine on a GPU: `scripts/bench-gpu OUT`.

Writes OUT/figures.jsonl, traces for a browser, and OUT/figures.tar.gz with all of them. A second
call goes on where the first ended; OUT also keeps the compiled code for it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import MochiTransformer3DModel
from torch.nn import functional

from models.cuda import choose_allocator
from models.errors import EngineUnavailableError, MochiError
from models.mochi.bench.probes import Recording, matmul_peak, product_tflops, seconds_of
from models.mochi.bench.results import Machine
from models.mochi.network.attention import Kernel, choose_kernel, joint_attention, use_kernel
from models.mochi.parts import Dtypes
from models.mochi.synthetic.dummy import empty_dummy, fill
from models.mochi.synthetic.mock import tiny_transformer
from tests.bench.gpu.lab import Lab
from tests.bench.gpu.runner import Figures, Phase, pack, run_phases
from tests.gpu.checks import (
    check_that_frames_are_the_same_twice,
    error_of_compiling,
    errors_of_ours_and_stock,
)

ROOT = Path(__file__).parents[3]
BF16 = torch.bfloat16


# The card alone


def machine(lab: Lab) -> None:
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    lab.figure("machine", **asdict(Machine.of(lab.device)), cudnn=cudnn)
    lab.figure("matmul peak", tflops=matmul_peak(lab.device))
    shapes = ((14310, 3072, 9216), (14310, 3072, 3072), (14310, 3072, 16384), (14310, 8192, 3072))
    for shape in shapes if lab.on_gpu else ((16, 32, 64),):
        lab.figure("product", shape=shape, tflops=product_tflops(shape, BF16, lab.device))
    size = 2**30 if lab.on_gpu else 2**10
    there = torch.empty(size, dtype=torch.uint8, device=lab.device)
    here = torch.empty(size, dtype=torch.uint8, pin_memory=lab.on_gpu)
    copies = {"device to device": (there, there.clone()), "pinned to device": (there, here)}
    for name, (target, source) in copies.items():
        copy = partial(target.copy_, source, non_blocking=True)
        lab.figure(name, gb_s=size / seconds_of(copy, lab.device) / 1e9)


def convolutions(lab: Lab) -> None:
    """Shapes of the VAE: does cuDNN take them, and does float32 use TF32? The kernels tell."""
    shapes = ((128, 14, 482, 850), (256, 14, 242, 426), (512, 8, 122, 214), (768, 4, 62, 108))
    layout: Any = {"memory_format": torch.channels_last_3d}
    for channels, *size in shapes if lab.on_gpu else ((32, 4, 10, 12),):
        for dtype in (BF16, torch.float32):
            inputs = torch.randn(1, channels, *size, device=lab.device, dtype=dtype).to(**layout)
            weight = torch.randn(channels, channels, 3, 3, 3, device=lab.device, dtype=dtype)
            run = partial(functional.conv3d, inputs, weight.to(**layout))
            seconds = seconds_of(run, lab.device, 3)
            flops = 2 * 27 * channels * run().numel()
            recording = Recording(lab.device)
            recording.start()
            run()
            recording.stop()
            lab.figure(
                "convolution",
                shape=(channels, *size),
                dtype=dtype,
                ms=seconds * 1e3,
                tflops=flops / seconds / 1e12,
                kernels=[each.name[:90] for each in recording.slowest("ours", 4)],
            )


def attention(lab: Lab) -> None:
    """Each kernel at the tokens of 49 and 160 frames."""
    kernels: tuple[Kernel, ...] = ("cudnn", "fa3", "fa4", "flash", "efficient")
    for kernel in kernels if lab.on_gpu else kernels[3:4]:
        try:
            choose_kernel(kernel, lab.device)
        except EngineUnavailableError as error:
            lab.figure("attention", kernel=kernel, error=str(error))
            continue
        for tokens in (14370, 44580) if lab.on_gpu else (64,):
            some = torch.randn(3, 1, tokens, 24, 128, device=lab.device, dtype=BF16)
            with use_kernel(kernel):
                seconds = seconds_of(partial(joint_attention, *some), lab.device, 5)
            tflops = 4 * tokens**2 * 24 * 128 / seconds / 1e12
            lab.figure("attention", kernel=kernel, tokens=tokens, ms=seconds * 1e3, tflops=tflops)


# Our engine, and the stock pipeline


def eager(lab: Lab) -> None:
    lab.measure(lab.both(), 49, "ours")


def stock(lab: Lab) -> None:
    lab.measure(lab.both(), 49, "stock")


def compiled(lab: Lab) -> None:
    lab.measure(lab.compiled(), 49, "ours")


def trace(lab: Lab) -> None:
    bench, frames = lab.compiled(), lab.frames(49)
    lab.kernels("step of ours", bench.trace_step("ours", frames, lab.out))
    lab.kernels("decoding of ours", bench.trace_decoding(frames, lab.out))
    lab.kernels("step of stock", bench.trace_step("stock", frames, lab.out))


def parity(lab: Lab) -> None:
    """Three blocks of full width: against float32, beside stock, and compiled."""
    ours, stock = errors_of_ours_and_stock(_three_blocks(lab), lab.device)
    lab.figure("error against float32", ours=ours, stock=stock)
    error = error_of_compiling(_three_blocks(lab), lab.device, lab.backend)
    lab.figure("error of compiling", ours=error)


def _three_blocks(lab: Lab) -> MochiTransformer3DModel:
    model = empty_dummy(Dtypes(BF16, BF16, BF16), 3).transformer if lab.on_gpu else None
    model = model or tiny_transformer(3).to(BF16)
    fill(model, torch.Generator(lab.device).manual_seed(4), lab.device)
    return model


def whole(lab: Lab) -> None:
    lab.measure(lab.compiled(), 49, "ours", steps=30)


def longest(lab: Lab) -> None:
    lab.measure(lab.compiled(), 160, "ours", repeats=0)


def repeatable(lab: Lab) -> None:
    check_that_frames_are_the_same_twice(lab.compiled().subjects.ours)


def lengths(lab: Lab) -> None:
    for frames in (52, 85):
        lab.measure(lab.compiled(), frames)


def longest_stock(lab: Lab) -> None:
    lab.measure(lab.compiled(), 160, "stock", repeats=0)


def other(lab: Lab, *, longest_too: bool = False, **settings: Any) -> None:
    """Run our engine with other settings."""
    bench = lab.engines(compile=lab.on_gpu, **settings)
    lab.measure(bench, 49)
    if longest_too:
        lab.measure(bench, 160, repeats=0)


def smaller_card(lab: Lab, gib: float) -> None:
    """With the profile and the precision that a worker would choose there."""
    other(lab, longest_too=True, memory_gib=gib, precision="auto")


def tests(lab: Lab) -> None:
    """`tests/gpu`, in a process of their own, which has the card to itself."""
    lab.drop()
    # `--noconftest`: tests/conftest.py needs a broker. `addopts=`: no plugin is needed.
    command = [sys.executable, "-m", "pytest", "tests/gpu", "--noconftest", "-o", "addopts=", "-v"]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["--junitxml", str(lab.out / "tests.xml")]
    if status := subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise MochiError(f"pytest ended with status {status}; the log and tests.xml say why.")


PHASES: tuple[tuple[str, float, Callable[[Lab], None]], ...] = (
    ("machine", 15, machine),
    ("convolutions", 15, convolutions),
    ("attention", 20, attention),
    ("eager", 80, eager),
    ("stock", 60, stock),
    ("compiled", 150, compiled),
    ("trace", 30, trace),
    ("parity", 60, parity),
    ("whole", 80, whole),
    ("longest", 80, longest),
    ("repeatable", 20, repeatable),
    ("lengths", 150, lengths),
    ("longest-stock", 120, longest_stock),
    ("reference", 90, partial(other, precision="reference")),
    ("24gb", 200, partial(smaller_card, gib=23.5)),
    ("48gb", 200, partial(smaller_card, gib=47)),
    ("offload", 150, partial(other, profile="offload")),
    ("fp8", 120, partial(other, fp8=True)),
    ("step-cache", 90, partial(other, step_cache=0.06)),
    ("tests", 300, tests),
)
"""The most wanted first, with the seconds that each may take on an H100. The first of a call that
needs the engines also loads them."""
NAMES = [name for name, _, _ in PHASES]
THOROUGH = 3
"""Factor of the seconds with `--thorough`."""


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 1 if a phase failed, 2 where there is no GPU."""
    began = time.monotonic()
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available() and not options.dry_run:
        sys.stderr.write(
            "torch finds no CUDA device. Check that nvidia-smi lists a GPU and that torch is a "
            f"CUDA build: {sys.executable} -c 'import torch; print(torch.version.cuda)'\n"
            "--dry-run tries the phases on a CPU.\n"
        )
        return 2
    choose_allocator()
    figures = Figures(options.out / "figures.jsonl", lambda: time.monotonic() - began)
    lab = Lab(options.out, figures, thorough=options.thorough)
    factor = THOROUGH if options.thorough else 1
    phases = [
        Phase(name, seconds * factor, partial(_run, lab, name, run))
        for name, seconds, run in PHASES
    ]
    figures.add("", "began", utc=time.strftime("%F %T", time.gmtime()), **vars(options))
    try:
        succeeded = run_phases(
            phases,
            figures,
            left=lambda: began + options.seconds - time.monotonic(),
            recover=lab.recover,
            only=options.only,
        )
    finally:
        sys.stdout.write(f"{pack(options.out)}\n")
    return 0 if succeeded else 1


def _run(lab: Lab, name: str, run: Callable[[Lab], None]) -> None:
    lab.phase = name
    run(lab)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench-gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Phases: {', '.join(NAMES)}",
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--seconds", type=float, default=400, help="for this call; default: 400")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=[], metavar="PHASE")
    parser.add_argument(
        "--thorough", action="store_true", help="30 steps and 3 warm requests, not 10 and 1"
    )
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with a small model")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
