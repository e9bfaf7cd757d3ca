"""A kept decomposition is the computed one, bit for bit, and is computed once; what is kept is bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from randlora import attach, get_method
from randlora.arithmetic import decompositions
from randlora.arithmetic.decompositions import Decompositions
from tests.randlora.methods.support import TARGETS, network, rows

DECOMPOSING = ["pissa", "lora-xs", "svft", "randlora-svd", "peft:osf", "peft:psoft", "peft:tinylora", "peft:frod"]


def attached(method: str, model: Any = None) -> list[Tensor]:
    """Everything that an attach makes: what trains, what is derived, and the outputs after a change."""
    model = model or network().eval()
    config = get_method(method).config.from_options(4, {})
    adapted = attach(model, config, TARGETS, init_seed=3, basis_seed=4)
    with torch.no_grad():
        for i, parameter in enumerate(adapted.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)), alpha=0.1)
    found = [*(p.detach().clone() for p in adapted.parameters()), *(t.clone() for t in adapted.derived().values())]
    found.append(model(rows()[0]).detach())
    adapted.detach()
    return found


@pytest.mark.parametrize("method", DECOMPOSING)
@pytest.mark.parametrize("limit", [2**30, 5000])
def test_what_is_attached_is_the_same_to_the_bit(method: str, limit: int) -> None:
    plain, keeper, model = attached(method), Decompositions(limit), network().eval()
    for _ in range(3):
        with keeper:
            again = attached(method, model)
        assert len(again) == len(plain)
        assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(again, plain, strict=True))
        assert keeper.nbytes <= limit
    assert keeper.computed > 0
    if limit == 2**30:
        assert keeper.reused >= 2 * keeper.computed  # the second and the third time all of them
    else:
        assert keeper.reused > 0  # what fits is kept, however often the rest passes by


def test_other_bits_are_other_matrices_and_methods_share() -> None:
    keeper, model = Decompositions(), network().eval()
    with keeper:
        attached("pissa", model)
        made = keeper.computed
        attached("lora-xs", model)
        assert keeper.computed == made
        with torch.no_grad():
            model[0].up.weight[0, 0] += 1.0
        attached("pissa", model)
        assert keeper.computed == made + 1


def test_earlier_blocks_make_way_and_results_are_copies() -> None:
    one, two = (torch.randn(20, 20, generator=torch.Generator().manual_seed(i)) for i in range(2))
    keeper = Decompositions(limit=2000)  # one inverse of 1,600 bytes
    for matrix in (one, two):
        with keeper:
            torch.linalg.inv(matrix).zero_()
            assert keeper.nbytes == 1600
            assert torch.equal(torch.linalg.inv(matrix) @ matrix, torch.linalg.inv(matrix) @ matrix)
            assert torch.linalg.inv(matrix).abs().sum() > 0
    with keeper:
        torch.linalg.inv(two)
        torch.linalg.inv(one)
    assert keeper.computed == 3
    trained = one.clone().requires_grad_()
    with keeper:
        torch.linalg.inv(trained).sum().backward()
    assert trained.grad is not None


def test_a_result_is_measured_once_however_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdaMSS makes thousands of small ones, others with each seed; an attach of 4 seconds came to take 700."""
    measured = 0

    def size(parts: list[Tensor]) -> int:
        nonlocal measured
        measured += 1
        return sum(part.nbytes for part in parts)

    monkeypatch.setattr(decompositions, "_size", size)
    draw, keeper = torch.Generator().manual_seed(0), Decompositions()
    for _ in range(3):
        with keeper:
            for _ in range(50):
                torch.linalg.inv(torch.randn(2, 2, generator=draw))
    assert measured == keeper.computed == 150
