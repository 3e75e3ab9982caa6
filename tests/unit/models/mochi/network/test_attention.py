from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.errors import EngineUnavailableError
from models.mochi.network import attention
from models.mochi.network.attention import (
    Kernel,
    choose_kernel,
    joint_attention,
    pairs_to_halves,
    rotate,
    use_kernel,
)
from tests.support.models.tiny_mochi import CPU, normal

GPU = torch.device("cuda")

# The kernel


@pytest.fixture(autouse=True)
def _no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget packages of earlier tests, and do not find any that is installed."""
    for name in ("flash_attn_interface", "flash_attn", "flash_attn.cute"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    paths = [path for path in sys.path if not list(Path(path).glob("flash_attn*"))]
    monkeypatch.setattr(sys, "path", paths)
    monkeypatch.setattr(attention, "_runs", lambda *_: True)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are imported from."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(site: Path, package: str, text: str = "") -> None:
    for part in Path(package.replace(".", "/")).parents:
        if part != Path():
            (site / part).mkdir()
            (site / part / "__init__.py").write_text(text)
    (site / f"{package.replace('.', '/')}.py").touch()


def test_on_a_cpu_it_is_pytorch_s_own() -> None:
    assert choose_kernel("auto", CPU) == "flash"


@pytest.mark.parametrize("wanted", ["cudnn", "flash", "efficient", "math"])
@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_what_comes_with_pytorch_is_taken_as_wanted(wanted: Kernel, device: torch.device) -> None:
    assert choose_kernel(wanted, device) == wanted


@pytest.mark.parametrize(
    ("wanted", "package"), [("fa3", "flash_attn_interface"), ("fa4", "flash_attn.cute")]
)
def test_a_kernel_whose_package_is_missing_is_refused_by_name(
    site: Path, wanted: Kernel, package: str
) -> None:
    with pytest.raises(EngineUnavailableError) as caught:
        choose_kernel(wanted, GPU)
    assert str(caught.value) == (
        f"MOCHI_ATTENTION={wanted} needs the Python package {package}, which is not installed "
        "here. Install it, or leave the choice to MOCHI_ATTENTION=auto."
    )
    install(site, package)
    assert choose_kernel(wanted, GPU) == wanted


def test_a_kernel_that_does_not_run_is_passed_over_or_refused(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    install(site, "flash_attn_interface")
    assert choose_kernel("auto", GPU) == "fa3"
    monkeypatch.setattr(attention, "_runs", lambda kernel, _: kernel not in {"fa3", "cudnn"})
    assert choose_kernel("auto", GPU) == "flash"
    with pytest.raises(EngineUnavailableError, match="MOCHI_ATTENTION=fa3 does not run"):
        choose_kernel("fa3", GPU)


def test_flash_attention_2_alone_is_not_4(site: Path) -> None:
    install(site, "flash_attn.flash_attn_interface")
    with pytest.raises(EngineUnavailableError, match=r"flash_attn\.cute, which is not installed"):
        choose_kernel("fa4", GPU)


@pytest.mark.parametrize(
    ("capability", "packages", "expected"),
    [
        ((8, 0), ["flash_attn_interface", "flash_attn.cute"], "flash"),
        ((8, 9), ["flash_attn_interface", "flash_attn.cute"], "flash"),
        ((9, 0), [], "cudnn"),
        ((9, 0), ["flash_attn.cute"], "fa4"),
        ((9, 0), ["flash_attn_interface"], "fa3"),
        ((9, 0), ["flash_attn_interface", "flash_attn.cute"], "fa3"),
        ((10, 0), [], "cudnn"),
        ((10, 0), ["flash_attn_interface"], "cudnn"),
        ((10, 0), ["flash_attn.cute"], "fa4"),
        ((12, 0), ["flash_attn.cute"], "cudnn"),  # PyTorch refuses it there
    ],
    ids=str,
)
def test_on_a_gpu_its_age_and_what_is_installed_decide(
    monkeypatch: pytest.MonkeyPatch,
    site: Path,
    capability: tuple[int, int],
    packages: list[str],
    expected: Kernel,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    for package in packages:
        install(site, package)
    assert choose_kernel("auto", GPU) == expected


def test_a_package_that_cannot_be_imported_counts_as_missing(
    monkeypatch: pytest.MonkeyPatch, site: Path
) -> None:
    # As where it was built for another PyTorch.
    install(site, "flash_attn.cute", 'raise ImportError("undefined symbol: _ZN3c104cuda")')
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    assert choose_kernel("auto", GPU) == "cudnn"


def test_only_the_kernel_in_use_is_allowed_and_all_are_afterwards() -> None:
    query = heads(5, 0)
    expected = joint_attention(query, query, query)
    # A GPU's on a CPU: nothing else is taken in its stead.
    with pytest.raises(RuntimeError, match="kernel"), use_kernel("cudnn"):
        joint_attention(query, query, query)
    assert torch.equal(joint_attention(query, query, query), expected)


# Attention


def heads(tokens: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(1, tokens, 4, 16, seed=seed, dtype=dtype)


@pytest.mark.parametrize("kernel", ["flash", "math"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (24, 24), (24, 44), (300, 556)])
def test_attention_is_a_softmax_over_all_keys(kernel: Kernel, queries: int, keys: int) -> None:
    query, key, value = heads(queries, 0), heads(keys, 1), heads(keys, 2)
    scores = torch.einsum("bmhd,bnhd->bhmn", query.double(), key.double()) / 16**0.5
    expected = torch.einsum("bhmn,bnhd->bmhd", scores.softmax(-1), value.double()).flatten(2)
    with use_kernel(kernel):
        result = joint_attention(query, key, value)
    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-6)


def test_attention_does_not_depend_on_the_order_of_the_keys() -> None:
    query, key, value = heads(5, 0), heads(30, 1), heads(30, 2)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        joint_attention(query, key[:, order], value[:, order]), joint_attention(query, key, value)
    )


# Rotation


def pairs(x: Tensor) -> Tensor:
    """Of a channel of the first half of a head and one of the second."""
    return torch.stack(x.chunk(2, dim=-1), dim=-1)


def rope(tokens: int) -> tuple[Tensor, Tensor]:
    """Angles, and their table."""
    angles = 3 * normal(tokens, 4, 8, seed=9)
    return angles, torch.stack((angles.cos(), angles.sin()))


def test_pairs_are_turned_by_the_angle_of_their_position() -> None:
    x, (angles, table) = heads(24, 0), rope(24)
    turned = torch.view_as_complex(pairs(x.double())) * torch.polar(
        torch.ones_like(angles), angles
    ).to(torch.complex128)
    expected = torch.view_as_real(turned).float()
    torch.testing.assert_close(pairs(rotate(x, table)), expected, rtol=1e-5, atol=1e-6)


def test_pairs_of_neighbours_become_pairs_of_halves() -> None:
    weight = torch.arange(2 * 6 * 3.0).view(2 * 6, 3)  # two heads
    order = [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(pairs_to_halves(weight, 6), weight[order])
    assert torch.equal(pairs_to_halves(weight[:, 0], 6), weight[order, 0])


def test_turning_keeps_the_length_of_every_pair() -> None:
    x, (_, table) = heads(24, 0), rope(24)
    torch.testing.assert_close(pairs(rotate(x, table)).norm(dim=-1), pairs(x).norm(dim=-1))


def test_scores_depend_on_the_difference_of_angles_alone() -> None:
    query, key, (angles, table) = heads(24, 0), heads(24, 1), rope(24)
    further = angles + 1.3
    shifted = torch.stack((further.cos(), further.sin()))
    scores = [
        functional.cosine_similarity(rotate(query, each), rotate(key, each), dim=-1)
        for each in (table, shifted)
    ]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)


def test_an_angle_of_zero_changes_nothing() -> None:
    x, zeros = heads(3, 0), torch.zeros(3, 4, 8)
    assert torch.equal(rotate(x, torch.stack((zeros.cos(), zeros.sin()))), x)
