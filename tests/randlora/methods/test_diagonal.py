"""VeRA's own product: exact, differentiated exactly, and lean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from randlora.arithmetic.contract import prefers_matrix
from randlora.methods.random.vera import diagonal_linear


def pieces(out: int, width: int, r: int, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
    """x, base, bias, d, b, A, B in float64."""
    g = torch.Generator().manual_seed(seed)
    sizes = [(rows, width), (out, width), (out,), (r,), (out,), (r, width), (out, r)]
    return tuple(torch.randn(*size, generator=g, dtype=torch.float64) for size in sizes)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_equals_the_matrix_form(out: int, width: int, r: int, rows: int, seed: int) -> None:
    x, base, bias, d, b, a_basis, b_basis = pieces(out, width, r, rows, seed)
    delta = torch.diag(b) @ b_basis @ torch.diag(d) @ a_basis
    got = diagonal_linear(x, base, bias, (d, b), (a_basis, b_basis))
    torch.testing.assert_close(got, functional.linear(x, base + delta, bias), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(with_bias: bool) -> None:
    x, base, bias, d, b, a_basis, b_basis = pieces(7, 5, 3, 4)

    def f(x: Tensor, d: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        return diagonal_linear(x, base, bias, (d, b), (a_basis, b_basis))

    inputs = (x, d, b, bias) if with_bias else (x, d, b)
    assert torch.autograd.gradcheck(f, tuple(t.requires_grad_() for t in inputs))


def test_what_is_kept() -> None:
    """x A^T and the product before diag(b); not x."""
    x, base, bias, d, b, a_basis, b_basis = pieces(20, 30, 3, 50)
    kept: list[Tensor] = []
    d.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        diagonal_linear(x, base, bias, (d, b), (a_basis, b_basis))
    own = {id(t) for t in (base, a_basis, b_basis)}
    assert sum(t.numel() for t in kept if id(t) not in own) == 50 * (3 + 20) + 3 + 20


def test_gradients_only_where_asked() -> None:
    x, base, bias, d, b, a_basis, b_basis = pieces(7, 5, 3, 4)
    b.requires_grad_()
    diagonal_linear(x, base, bias, (d, b), (a_basis, b_basis)).sum().backward()
    assert b.grad is not None and d.grad is None and x.grad is None
    b = b.detach()
    x.requires_grad_()
    diagonal_linear(x, base, bias, (d, b), (a_basis, b_basis)).sum().backward()
    assert x.grad is not None


def test_frozen_factors_make_the_activation_form_cheaper() -> None:
    assert prefers_matrix(1600, (768, 768), 256) and not prefers_matrix(1600, (768, 768), 256, passes=2)
