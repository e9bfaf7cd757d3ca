"""Contractions: every plan equals the literal sum of the paper's equation 4, and differentiates exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from randlora.arithmetic import contract
from randlora.arithmetic.contract import Spread, low_rank_linear, prefers_matrix, spread_linear, spread_weight
from randlora.arithmetic.plans import Plan, choose_plan, plan_costs
from tests.randlora.support import equation_4

PLANS: list[Plan] = ["activation", "mixed", "merged"]
SHAPES = [(7, 5), (5, 7), (6, 6), (9, 2)]


def pieces(shape: tuple[int, int], r: int, rows: int = 4, seed: int = 0) -> tuple[Tensor, ...]:
    """x, base, bias, lambda, gamma, A, B in float64, all random."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    m, large = min(shape), max(shape)
    n = -(-m // r)
    return (
        normal(rows, shape[1]),
        normal(*shape),
        normal(shape[0]),
        normal(r, n),
        normal(n, m),
        normal(r, m),
        normal(large, n * r),
    )


@given(
    out=st.integers(1, 12),
    width=st.integers(1, 12),
    r=st.integers(1, 13),
    rows=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_every_plan_is_equation_4(out: int, width: int, r: int, rows: int, seed: int) -> None:
    shape = (out, width)
    x, base, bias, lam, gam, a, b = pieces(shape, r, rows, seed)
    part = Spread(a, b, 0.7, out >= width)
    delta = equation_4(shape, lam, gam, a, b, 0.7)
    torch.testing.assert_close(spread_weight(None, (lam, gam), part), delta, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(spread_weight(base, (lam, gam), part), base + delta, rtol=1e-11, atol=1e-11)
    expected = functional.linear(x, base + delta, bias)
    for plan in [*PLANS, None]:
        got = spread_linear(x, base, bias, (lam, gam), part, plan=plan)
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
        got = spread_linear(x, None, None, (lam, gam), part, plan=plan)
        torch.testing.assert_close(got, x @ delta.t(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_base", [True, False])
def test_gradcheck(plan: Plan, shape: tuple[int, int], with_base: bool) -> None:
    x, base, bias, lam, gam, a, b = pieces(shape, 2)
    part = Spread(a, b, 1.3, shape[0] >= shape[1])
    trained = [t.requires_grad_() for t in (x, bias, lam, gam)]

    def f(x: Tensor, bias: Tensor, lam: Tensor, gam: Tensor) -> Tensor:
        return spread_linear(x, base if with_base else None, bias if with_base else None, (lam, gam), part, plan=plan)

    assert torch.autograd.gradcheck(f, trained, raise_exception=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradcheck_of_the_matrix_form(shape: tuple[int, int]) -> None:
    _, base, _, lam, gam, a, b = pieces(shape, 2)
    part = Spread(a, b, 1.3, shape[0] >= shape[1])
    inputs = [t.requires_grad_() for t in (base, lam, gam)]
    assert torch.autograd.gradcheck(lambda w, le, g: spread_weight(w, (le, g), part), inputs)


@pytest.mark.parametrize("plan", PLANS)
def test_gradients_only_where_asked(plan: Plan) -> None:
    x, base, bias, lam, gam, a, b = pieces((5, 7), 2)
    part = Spread(a, b, 1.0, False)
    gam.requires_grad_()
    spread_linear(x, base, bias, (lam, gam), part, plan=plan).sum().backward()
    assert gam.grad is not None
    assert x.grad is None and base.grad is None and lam.grad is None
    x.requires_grad_()
    gam = gam.detach()
    spread_linear(x, base, bias, (lam, gam), part, plan=plan).sum().backward()
    assert x.grad is not None and gam.grad is None


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("shape", [(64, 32), (32, 64)])
def test_what_is_kept_for_backward(plan: Plan, shape: tuple[int, int]) -> None:
    """x, or the smaller x B of a wide weight; never M, nor base + delta."""
    rows, r = 50, 4
    x, base, bias, lam, gam, a, b = pieces(shape, r, rows)
    part = Spread(a, b, 1.0, shape[0] >= shape[1])
    kept: list[int] = []

    def pack(t: Tensor) -> Tensor:
        if t is not base:
            kept.append(t.numel())
        return t

    lam, gam = lam.requires_grad_(), gam.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        spread_linear(x, base, bias, (lam, gam), part, plan=plan)
    wide_keeps_small = plan != "merged" and shape[0] < shape[1]
    inputs = rows * (lam.numel() if wide_keeps_small else shape[1])
    assert sum(kept) == inputs + lam.numel() + gam.numel()


@pytest.mark.parametrize(("rows", "plan"), [(64, "activation"), (600, "mixed"), (1000, "merged"), (100_000, "merged")])
def test_plan_by_cost(rows: int, plan: Plan) -> None:
    """Crossings of a square 768 layer near N = Dd / (D + d) = 384 and N = D = 768."""
    assert choose_plan(rows, 768, 768, 768) == plan


@given(st.integers(1, 5000), st.integers(1, 600), st.integers(1, 600), st.integers(1, 600))
@settings(max_examples=50, deadline=None)
def test_the_chosen_plan_costs_least(rows: int, one: int, other: int, inner: int) -> None:
    large, small = max(one, other), min(one, other)
    costs = plan_costs(rows, large, small, inner)
    assert costs[choose_plan(rows, large, small, inner)] == min(costs.values())


def test_a_delta_apart_is_a_matrix_where_rows_are_many() -> None:
    assert choose_plan(600, 768, 768, 768, apart=True) == "activation" != choose_plan(600, 768, 768, 768)
    assert choose_plan(100_000, 768, 768, 768, apart=True) == "merged"
    assert choose_plan(500, 768, 768, 768, training=False, apart=True) == "activation"
    assert choose_plan(1000, 768, 768, 768, training=False, apart=True) == "merged"


def test_matrix_form_for_many_rows_and_ranks() -> None:
    assert not prefers_matrix(1000, (768, 768), 8)
    assert prefers_matrix(100_000, (192, 192), 128)


def test_low_rank_forms_agree() -> None:
    x, base, bias, *_ = pieces((7, 5), 2)
    g = torch.Generator().manual_seed(3)
    a, b = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (5, 7))
    got = low_rank_linear((x, x), base, bias, (a, b), 0.3)
    torch.testing.assert_close(got, functional.linear(x, base + 0.3 * b @ a.t(), bias), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shared", "summed"), [(0, 2), (1, 0), (2, 0)])
@pytest.mark.parametrize("piece", [1, 50, 10**6])
def test_weighted_sum_in_pieces(monkeypatch: pytest.MonkeyPatch, shared: int, summed: int, piece: int) -> None:
    monkeypatch.setitem(contract.PIECE, "cpu", piece)
    g = torch.Generator().manual_seed(5)
    size = (4, 3, 7)
    frozen = torch.randn(4, 3, 9, generator=g, dtype=torch.float64)[..., :7]  # a view, as a layer's slice is
    weights = torch.randn(*(n for axis, n in enumerate(size) if axis != shared), generator=g, dtype=torch.float64)
    expected = (frozen * weights.unsqueeze(shared)).sum(summed)
    torch.testing.assert_close(contract.weighted_sum(frozen, weights, shared, summed), expected)
    assert torch.autograd.gradcheck(
        lambda w: contract.weighted_sum(frozen, w, shared, summed), weights.requires_grad_()
    )
    low = contract.weighted_sum(frozen.bfloat16(), weights.bfloat16(), shared, summed)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), expected, rtol=0.02, atol=0.02)


def test_sums_of_products_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contract.PIECE, "cpu", 10)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 4, generator=g), torch.randn(7, 4, generator=g)
    torch.testing.assert_close(contract.sum_of_products(x, y, 0), (x * y).sum(0))
    half = contract.sum_of_products(x.bfloat16(), y.bfloat16(), 0)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, (x.bfloat16().float() * y.bfloat16()).sum(0))
    assert contract.sum_of_products(x[:0], y[:0], 0).tolist() == [0.0] * 4


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
@pytest.mark.parametrize("rows", [3, 400])
def test_bf16_autocast(shape: tuple[int, int], rows: int) -> None:
    """Under autocast the result is bfloat16, gradients stay float32 and near the float32 ones."""
    x, base, bias, lam, gam, a, b = (t.float() for t in pieces(shape, 3, rows))
    lam, gam = lam.requires_grad_(), gam.requires_grad_()
    part = Spread(a, b, 0.1, shape[0] >= shape[1])
    spread_linear(x, base, bias, (lam, gam), part).square().mean().backward()
    exact = [lam.grad, gam.grad]
    lam.grad = gam.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = spread_linear(x, base, bias, (lam, gam), part._replace(b=b.bfloat16()))
        weight = spread_weight(base, (lam, gam), part._replace(b=b.bfloat16()))
    assert y.dtype == torch.bfloat16
    assert weight.dtype == torch.float32
    y.float().square().mean().backward()
    for near, reference in zip([lam.grad, gam.grad], exact, strict=True):
        assert near is not None and reference is not None and near.dtype == torch.float32
        assert (near - reference).norm() < 0.05 * reference.norm()
