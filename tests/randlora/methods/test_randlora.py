"""RandLoRA's own claims: full rank, the transposed case, the padded case, sparse bases."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from randlora import Adapted, ConfigError, RandLoraAConfig, RandLoraBConfig, RandLoraConfig, attach
from randlora.methods.random.randlora import DEFAULT_SCALE, RandLora
from tests.randlora.support import equation_4, perturb


def one_layer(shape: tuple[int, int], config: RandLoraConfig) -> tuple[Adapted, RandLora]:
    adapted = attach(nn.Linear(shape[1], shape[0]).double(), config, ["weight"], basis_seed=3)
    adapter = adapted.adapters["weight"]
    assert isinstance(adapter, RandLora)
    return adapted, adapter


@pytest.mark.filterwarnings("ignore:.*targets can use")
@pytest.mark.parametrize("shape", [(96, 96), (128, 96), (96, 128), (97, 53)])
@pytest.mark.parametrize("r", [1, 5, 32, 96])
def test_full_rank(shape: tuple[int, int], r: int) -> None:
    adapted, _ = one_layer(shape, RandLoraConfig(r))
    perturb(adapted, 1.0)
    assert torch.linalg.matrix_rank(adapted.deltas()["weight"]) == min(shape)


@pytest.mark.parametrize("distribution", ["normal", "binary", "ternary"])
def test_full_rank_of_other_distributions(distribution: str) -> None:
    adapted, _ = one_layer((128, 96), RandLoraConfig(6, distribution=distribution, sparsity=96**0.5))
    perturb(adapted, 1.0)
    assert torch.linalg.matrix_rank(adapted.deltas()["weight"]) == 96


def test_a_stays_dense_unless_asked() -> None:
    _, adapter = one_layer((64, 48), RandLoraConfig(4, distribution="ternary", sparsity=12.0))
    assert set(adapter.bases.get("A").unique().tolist()) == {-1.0, 1.0}
    with pytest.warns(UserWarning, match="loses rank"):
        config = RandLoraConfig(4, distribution="ternary", sparsity=12.0, sparse_a=True)
    _, adapter = one_layer((64, 48), config)
    assert (adapter.bases.get("A") == 0).double().mean() > 0.7


@pytest.mark.filterwarnings("ignore:.*targets can use")
@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (12, 12)])
@pytest.mark.parametrize("r", [1, 4, 5, 12, 15])
def test_equation_4_with_the_pairing(shape: tuple[int, int], r: int) -> None:
    adapted, adapter = one_layer(shape, RandLoraConfig(r, alpha=3.0))
    perturb(adapted, 1.0)
    a = adapter.bases.get("A")[:r, : min(shape)]
    b = adapter.bases.get("B")[: max(shape), : adapter.n * r]
    expected = equation_4(shape, adapter.lambdas.detach(), adapter.gammas.detach(), a, b, 3.0 / r)
    torch.testing.assert_close(adapted.deltas()["weight"], expected, rtol=1e-12, atol=1e-12)


def test_start_and_scale() -> None:
    _, adapter = one_layer((20, 12), RandLoraConfig(5))
    assert adapter.scale == DEFAULT_SCALE
    assert adapter.lambdas.shape == (5, 3) and adapter.gammas.shape == (3, 12)
    assert (adapter.lambdas == 0).all()
    torch.testing.assert_close(adapter.gammas.detach(), torch.full((3, 12), 1 / 12, dtype=torch.float64))
    assert RandLoraConfig(5, alpha=10.0).scale == 2.0


@pytest.mark.filterwarnings("ignore:.*targets can use")
@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (12, 12)])
@pytest.mark.parametrize("r", [1, 4, 5, 12])
def test_the_released_start_for_images(shape: tuple[int, int], r: int) -> None:
    """lambda = 1 / max(n, r), gamma = 0; the gradients of equation 4, summed base by base."""
    adapted, adapter = one_layer(shape, RandLoraConfig(r, alpha=10.0, start="gamma"))
    n, m = -(-min(shape) // r), min(shape)
    assert adapted.count() == n * (r + m) == one_layer(shape, RandLoraConfig(r))[0].count()
    assert torch.equal(adapter.lambdas.detach(), torch.full((r, n), 1 / max(n, r), dtype=torch.float64))
    assert torch.equal(adapted.deltas()["weight"], torch.zeros(shape, dtype=torch.float64))
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (adapter.weight(torch.zeros(shape, dtype=torch.float64)) * grad).sum().backward()
    assert adapter.lambdas.grad is not None and not adapter.lambdas.grad.any()  # gamma is 0
    a = adapter.bases.get("A")[:r, :m]
    b = adapter.bases.get("B")[: max(shape), : n * r]
    tall = grad if shape[0] >= shape[1] else grad.t()
    columns = [[b[:, k * n + j] for k in range(r)] for j in range(n)]  # PEFT's pairing
    for j in range(n):
        delta_j = [sum(columns[j][k] / max(n, r) * a[k, i] for k in range(r)) for i in range(m)]  # by gamma_ji
        expected = torch.stack([10.0 / r * (tall[:, i] * delta_j[i]).sum() for i in range(m)])
        assert adapter.gammas.grad is not None
        torch.testing.assert_close(adapter.gammas.grad[j], expected, rtol=1e-10, atol=1e-10)


def test_a_first_step_from_gamma_is_six_times_as_long_on_a_768_wide_weight() -> None:
    """Of Adam, whose first step moves every number by its rate: m / max(n, r) = 768 / 128."""
    sizes = {}
    for start, moved in (("lambda", "lambdas"), ("gamma", "gammas")):
        adapted, adapter = one_layer((768, 768), RandLoraConfig(6, alpha=10.0, start=start))
        signs = torch.randint(0, 2, getattr(adapter, moved).shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
        with torch.no_grad():
            getattr(adapter, moved).add_(1e-3 * signs)
        sizes[start] = float(adapted.deltas()["weight"].square().mean().sqrt())
    assert sizes["gamma"] / sizes["lambda"] == pytest.approx(6.0, rel=0.03)
    assert sizes["gamma"] == pytest.approx(10 / 6 * 1e-3 * 768**0.5 / 128, rel=0.03)


def test_starts_of_the_ablations_and_unknown_ones() -> None:
    for config in (RandLoraBConfig(3, start="gamma"), RandLoraAConfig(5, r=4, start="gamma")):
        adapted = attach(nn.Linear(12, 20).double(), config, ["weight"])
        adapter = adapted.adapters["weight"]
        lambdas, gammas = adapter.get_parameter("lambdas"), adapter.get_parameter("gammas")
        assert not gammas.any() and torch.equal(lambdas, torch.full_like(lambdas, 1 / max(lambdas.shape)))
        assert not adapted.deltas()["weight"].any()
        assert adapted.count() == lambdas.numel() + gammas.numel()
    for kind in (RandLoraConfig, RandLoraAConfig, RandLoraBConfig):
        with pytest.raises(ConfigError, match="start must be 'lambda' or 'gamma' but got 'gama'; nearest: 'gamma'"):
            kind(5, start="gama")


def test_the_papers_scales_of_language_models() -> None:
    """2 for LoRA and 2 / sqrt(n) for RandLoRA (appendix C.4), per layer; Llama-3's k and v at r = 30 have n = 35."""
    from randlora import LoraConfig

    assert {LoraConfig(r, alpha="2r").scale for r in (16, 32, 64)} == {2.0}
    _, adapter = one_layer((20, 12), RandLoraConfig(5, alpha="2r/sqrt(n)"))
    assert (adapter.n, adapter.scale) == (3, 2.0 / 3**0.5)
    assert RandLoraConfig(30, alpha="2r/sqrt(n)").scale_of(35) == pytest.approx(0.338, abs=1e-3)
    for bad in ("2", "r", "0r", "2r/n", "-2r"):
        with pytest.raises(ConfigError, match=f"a rule such as '2r' .*2r/sqrt.*but got '{bad}'"):
            RandLoraConfig(5, alpha=bad)
    with pytest.raises(ConfigError, match=r"lora: alpha must be a positive number or a rule such as '2r' .* but got"):
        LoraConfig(5, alpha="2r/sqrt(n)")
    with pytest.raises(ConfigError, match="rank_stabilised another; leave one out"):
        LoraConfig(5, alpha="2r", rank_stabilised=True)


def test_layers_of_any_rank_read_the_same_first_columns() -> None:
    layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(24, 40)])
    adapted = attach(layers, RandLoraConfig(4), ["*"], capacities={"0.weight": 5, "1.weight": 3})
    small, large = adapted.adapters.values()
    assert isinstance(small, RandLora) and isinstance(large, RandLora)
    assert small.bases is large.bases
    assert small.bases.get("B").shape == (40, 24)
    assert small.part().b.data_ptr() == large.part().b.data_ptr() == small.bases.get("B").data_ptr()
