"""What each of the further methods claims: the paper's formula, its rank, its start."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from randlora import (
    AdapterConfig,
    AdapterError,
    CheckpointError,
    ConfigError,
    DoraConfig,
    HybridConfig,
    HydraLoraConfig,
    LoraXsConfig,
    PissaConfig,
    RandLoraAConfig,
    RandLoraBConfig,
    RandLoraConfig,
    RandLoraSvdConfig,
    SvftConfig,
    attach,
    load,
)
from randlora.adapter import Adapter
from randlora.methods.experimental import Hybrid, RandLoraSvd
from randlora.methods.lowrank.hydra import HydraLora
from randlora.methods.lowrank.spectral import LoraXs, Svft
from randlora.methods.lowrank.starts import Started
from randlora.methods.random.ablations import RandLoraA
from randlora.methods.random.randlora import RandLora
from tests.randlora.support import batch, block, equation_4, perturb, stored, targets_of

SHAPES = [(20, 12), (12, 20), (12, 12)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def one(config: AdapterConfig, shape: tuple[int, int], size: float = 0.3) -> tuple[Adapter, Tensor, Tensor]:
    """A float64 layer's adapter, moved from its start, its frozen weight, and its delta."""
    layer = nn.Linear(shape[1], shape[0]).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    adapted = attach(layer, config, ["weight"], basis_seed=3)
    perturb(adapted, size)
    return adapted.adapters["weight"], stored(layer).detach(), adapted.deltas()["weight"]


@every_shape
def test_randlora_a_is_a_product_of_two_sums(shape: tuple[int, int]) -> None:
    adapter, _, delta = one(RandLoraAConfig(5, r=3, alpha=6.0), shape)
    assert isinstance(adapter, RandLoraA)
    large, small = max(shape), min(shape)
    left, right = torch.zeros(large, 3).double(), torch.zeros(3, small).double()
    for i in range(5):
        rows = slice(3 * i, 3 * i + 3)
        left += adapter.bases.get("B")[:large, i:15:5] @ torch.diag(adapter.lambdas[:, i].detach())
        right += adapter.bases.get("A")[rows, :small] @ torch.diag(adapter.gammas[i].detach())
    expected = left @ right * (6.0 / 3) / 5
    torch.testing.assert_close(delta, expected if shape[0] >= shape[1] else expected.t(), rtol=1e-11, atol=1e-12)
    assert torch.linalg.matrix_rank(delta) == 3


@every_shape
def test_randlora_b_has_half_the_rank(shape: tuple[int, int]) -> None:
    adapter, _, delta = one(RandLoraBConfig(3), shape, 1.0)
    assert isinstance(adapter, RandLora)
    assert adapter.lambdas.shape == (3, 2) and adapter.gammas.shape == (2, 12)
    assert torch.linalg.matrix_rank(delta) == 6


@every_shape
def test_pissa_moves_the_principal_part(shape: tuple[int, int]) -> None:
    adapter, weight, delta = one(PissaConfig(4, alpha=2.0), shape)
    assert isinstance(adapter, Started)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    start = 0.5 * adapter.b_start @ adapter.a_start.t()
    torch.testing.assert_close(start, u[:, :4] @ torch.diag(s[:4]) @ vh[:4], rtol=1e-9, atol=1e-9)
    residual = weight - start
    product = 0.5 * adapter.b.detach() @ adapter.a.detach().t()
    torch.testing.assert_close(weight + delta, residual + product, rtol=1e-9, atol=1e-9)
    assert adapter.count() == 4 * sum(shape)


@every_shape
def test_lora_xs_and_svft_work_between_singular_vectors(shape: tuple[int, int]) -> None:
    xs, weight, delta = one(LoraXsConfig(4), shape)
    assert isinstance(xs, LoraXs)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    signs = torch.sign((u[:, :4] * xs.left).sum(0))
    expected = (u[:, :4] * signs * s[:4]) @ xs.core.detach() @ (vh[:4] * signs[:, None])
    torch.testing.assert_close(delta, expected, rtol=1e-9, atol=1e-9)

    adapter, _, delta = one(SvftConfig(5), shape)
    assert isinstance(adapter, Svft)
    middle = adapter.middle().detach()
    assert torch.equal(middle, torch.tril(torch.triu(middle, -2), 2))
    assert int((middle != 0).sum()) == adapter.entries.numel() == 12 + 2 * (11 + 10)
    torch.testing.assert_close(delta, adapter.left @ middle @ adapter.right.t(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 6, 7, 8, 9, 40])
@every_shape
def test_svft_has_one_result_however_its_products_are_taken(shape: tuple[int, int], rows: int) -> None:
    adapter, weight, _ = one(SvftConfig(5, scale=0.7), shape)
    assert isinstance(adapter, Svft)
    x = torch.randn(rows, shape[1], dtype=torch.float64, requires_grad=True)
    bias, given = torch.randn(shape[0], dtype=torch.float64), torch.randn(rows, shape[0], dtype=torch.float64)
    found = []
    for y in (adapter.linear(x, weight, bias), nn.functional.linear(x, weight + adapter.delta(weight), bias)):
        found.append((y, *torch.autograd.grad(y, (x, adapter.entries), given)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@every_shape
def test_hybrid_is_the_sum_of_its_parts(shape: tuple[int, int]) -> None:
    adapter, weight, delta = one(HybridConfig(5, share=0.4), shape)
    assert isinstance(adapter, Hybrid)
    low, full = adapter.low.delta(weight), adapter.full.delta(weight)
    assert torch.linalg.matrix_rank(low.detach()) == adapter.low.r == 1
    torch.testing.assert_close(delta, (low + full).detach())


@pytest.mark.filterwarnings("ignore:.*targets can use")
@every_shape
@pytest.mark.parametrize("r", [3, 5, 12, 15])
def test_svd_bases_are_equation_4_with_full_rank(shape: tuple[int, int], r: int) -> None:
    adapter, _, delta = one(RandLoraSvdConfig(r, alpha=3.0), shape)
    assert isinstance(adapter, RandLoraSvd)
    a, b = adapter.basis_a, adapter.basis_b
    expected = equation_4(shape, adapter.lambdas.detach(), adapter.gammas.detach(), a, b, 3.0 / r)
    torch.testing.assert_close(delta, expected, rtol=1e-11, atol=1e-12)
    assert torch.linalg.matrix_rank(delta) == 12
    torch.testing.assert_close(b[:, :12].t() @ b[:, :12], max(shape) * torch.eye(12).double(), rtol=1e-9, atol=1e-9)


def test_hydralora_by_hand() -> None:
    layer, x = nn.Linear(16, 24).double(), batch(torch.float64)
    adapted = attach(layer, HydraLoraConfig(3, heads=2, alpha=6.0), ["weight"])
    perturb(adapted, 0.5)
    adapter = adapted.adapters["weight"]
    assert isinstance(adapter, HydraLora)
    expected = nn.functional.linear(x, stored(layer), layer.bias)
    shares = torch.softmax((x @ adapter.router.t()), -1)
    for head in range(2):
        b = adapter.b[:, 3 * head : 3 * head + 3]
        expected = expected + 2.0 * shares[..., head : head + 1] * (x @ adapter.a @ b.t())
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-11)


def test_hydralora_says_that_it_cannot_merge(tmp_path: Path) -> None:
    model, x = block(), batch()
    with pytest.raises(ConfigError, match=r"HydraLoRA's update is not a matrix.*attn\.in_proj_weight"):
        attach(model, HydraLoraConfig(3), ["fc", "attn.in_proj_weight"])
    adapted = attach(model, HydraLoraConfig(3), ["fc", "proj"])
    perturb(adapted)
    y = model(x)
    for action in (adapted.merge, adapted.deltas, lambda: adapted.export_deltas(tmp_path)):
        with pytest.raises(AdapterError, match="cannot be merged"):
            action()
    assert torch.equal(model(x), y)


@pytest.mark.parametrize(
    ("sparsity", "zeros"), [(2, 0.0), (6, 0.667), ("sqrt", 0.928), (100, 0.98), (200, 0.99)], ids=str
)
def test_the_papers_sparse_bases(sparsity: float, zeros: float) -> None:
    """s = 2, 6, sqrt(D), 100, 200: 0, 66, 93, 98, 99 % zeros at D = 768, of unit variance, A dense."""
    config = RandLoraConfig.from_options(6, {"distribution": "ternary", "sparsity": sparsity})
    layers = nn.ModuleList([nn.Linear(768, 400), nn.Linear(1024, 768)])
    adapted = attach(layers, config, ["*"], basis_seed=1)
    bases = adapted.bases()
    assert bases is not None
    b = bases.get("B")
    assert (b == 0).double().mean().item() == pytest.approx(zeros, abs=2e-3)
    assert b.var().item() == pytest.approx(1.0, abs=0.05)
    assert set(bases.get("A").unique().tolist()) == {-1.0, 1.0}
    again = attach(nn.ModuleList([nn.Linear(768, 400), nn.Linear(1024, 768)]), config, ["*"], basis_seed=1).bases()
    assert again is not None and again.digest() == bases.digest()


def test_both_sparse_as_the_paper_has_it_warns() -> None:
    with pytest.warns(UserWarning, match="loses rank"):
        config = RandLoraConfig(6, distribution="ternary", sparsity="sqrt", sparse_a=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = attach(nn.Linear(768, 768), config, ["weight"])
    bases = adapted.bases()
    assert bases is not None
    assert (bases.get("A") == 0).double().mean().item() == pytest.approx(0.928, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": "root"}, "sparsity must be a number or 'sqrt' but got 'root'"),
        ({"sparsity": 1.5, "distribution": "ternary"}, "at least 2"),
        ({"distribution": "ternry"}, "nearest: 'ternary'"),
    ],
)
def test_bad_bases(options: dict[str, float | str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RandLoraConfig.from_options(4, options)
    with pytest.raises(ConfigError, match="from 2 or 'sqrt' but got 'root'"):
        RandLoraAConfig(4, sparsity="root")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="share must lie between 0 and 1"):
        HybridConfig(4, share=1.0)


@pytest.mark.parametrize("config", [PissaConfig(3), LoraXsConfig(3), SvftConfig(2), RandLoraSvdConfig(5)], ids=str)
def test_what_is_derived_from_the_weights_is_saved_and_checked(config: AdapterConfig, tmp_path: Path) -> None:
    model, x = block(), batch()
    adapted = attach(model, config, targets_of(config))
    assert adapted.stored_bytes() == sum(4 * t.numel() for t in adapted.derived().values()) > 0
    perturb(adapted)
    y = model(x)
    adapted.save(tmp_path)
    # another machine's decomposition may differ in every sign: the file's tensors count, not the redrawn ones
    other = block()
    again = load(other, tmp_path)
    wanted = copy.deepcopy(adapted.derived())
    assert all(torch.equal(t, wanted[n]) for n, t in again.derived().items())
    assert torch.equal(other(x), y)
    again.detach()
    path = tmp_path / "derived.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="digest"):
        load(other, tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        load(other, tmp_path)
    assert torch.equal(other(x), block()(x))


def test_dora_learns_a_row_of_zeros() -> None:
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight[1] = 0.0
    adapted = attach(layer, DoraConfig(2), ["weight"])
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        layer(x).square().sum().backward()
        with torch.no_grad():
            for parameter in adapted.parameters():
                assert parameter.grad is not None and bool(parameter.grad.isfinite().all())
                parameter.sub_(0.1 * parameter.grad)
    assert bool((adapted.deltas()["weight"][1] != 0).any())
    with torch.no_grad():
        y = layer(x)
        with adapted.merging():
            torch.testing.assert_close(layer(x), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [3, 600])
def test_doras_weight_starts_exact_and_its_output_to_rounding(dtype: torch.dtype, rows: int) -> None:
    """The norms are those of one computation. The bias is added after the scale, as no product with a bias does."""
    draw = torch.Generator().manual_seed(0)
    layer = nn.Linear(197, 33).to(dtype)
    x = torch.randn(rows, 197, generator=draw, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(33, 197, generator=draw) * 197**-0.5)
        before, frozen = layer(x), layer.weight.clone()
        (adapter,) = attach(layer, DoraConfig(4), ["weight"]).adapters.values()
        assert torch.equal(adapter.weight(frozen), frozen)
        torch.testing.assert_close(layer(x), before, rtol=0, atol=32 * torch.finfo(dtype).eps)
