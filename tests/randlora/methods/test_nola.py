"""NoLA's two starts and scales, by hand; VeRA's scale."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from randlora import ConfigError, NolaConfig, VeraConfig, attach, get_method
from randlora.methods.random.nola import Nola
from tests.randlora.support import perturb


@pytest.mark.filterwarnings("ignore:.*targets can use")
@pytest.mark.parametrize(("k", "r"), [(9, 2), (40, 1), (64, 1)])
def test_the_released_start(k: int, r: int) -> None:
    """Every coefficient 1 / n on bases of variance 1 and no A_0, also with more bases than entries."""
    model = nn.Linear(16, 12).double()
    adapted = attach(model, NolaConfig(k, r=r, alpha=3.0, start="released"), ["weight"], basis_seed=4)
    adapter = adapted.adapters["weight"]
    assert isinstance(adapter, Nola) and adapted.count() == k
    k_a, k_b = k - k // 2, k // 2
    assert torch.equal(adapter.a.detach(), torch.full((k_a,), 1 / k_a, dtype=torch.float64))
    assert torch.equal(adapter.b.detach(), torch.full((k_b,), 1 / k_b, dtype=torch.float64))
    for _ in range(2):
        a = sum(adapter.a.detach()[i] * adapter.bases.get("A")[: 16 * r, i].view(16, r) for i in range(k_a))
        b = sum(adapter.b.detach()[i] * adapter.bases.get("B")[: 12 * r, i].view(12, r) for i in range(k_b))
        delta = adapted.deltas()["weight"]
        torch.testing.assert_close(delta, 3.0 / r * b @ a.T, rtol=1e-12, atol=1e-12)
        assert delta.any()
        perturb(adapted, 1.0)


def test_scales_of_table_9() -> None:
    """2 / sqrt(n), n the bases of one factor."""
    adapter = attach(nn.Linear(64, 64), NolaConfig(32, r=2, alpha="2r/sqrt(n)"), ["weight"]).adapters["weight"]
    assert isinstance(adapter, Nola) and adapter.scale == 2.0 / 16**0.5
    assert NolaConfig(2048, alpha="2r/sqrt(n)").own_alpha([(512, 512)]) == {"alpha": 2.0 / 32}
    with pytest.raises(ConfigError, match="start must be 'zero' or 'released' but got 'release'; nearest: 'released'"):
        NolaConfig(8, start="release")


def test_more_bases_than_entries_reach_nothing_new() -> None:
    nola = get_method("nola")
    assert [nola.dof((12, 16), k, r=1, start="released") for k in (8, 24, 64)] == [7, 23, 27]
    assert nola.dof((12, 16), 64, r=1) == 27  # of 12 + 16 entries of the factors


@torch.no_grad()
def test_veras_scale_multiplies_its_delta() -> None:
    deltas = []
    for scale in (1.0, 1 / 256):
        adapted = attach(nn.Linear(16, 12).double(), VeraConfig(8, scale=scale), ["weight"], basis_seed=4)
        perturb(adapted, 1.0)
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        adapter, base = adapted.adapters["weight"], torch.zeros(12, 16, dtype=torch.float64)
        deltas.append(adapted.deltas()["weight"])
        torch.testing.assert_close(adapter.linear(x, base, None), x @ deltas[-1].T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(deltas[1] * 256, deltas[0], rtol=1e-12, atol=1e-12)
    with pytest.raises(ConfigError, match="vera: scale must be positive"):
        VeraConfig(8, scale=0.0)
