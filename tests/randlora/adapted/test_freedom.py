"""What is counted and does not act, against formulas of the methods' geometry."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from torch import nn

from randlora import attach
from randlora.adapted.freedom import Degrees, acting_share, degrees, freedom
from randlora.methods.bridge.installed import PREFIX
from randlora.methods.bridge.kinds import KINDS
from randlora.methods.registry import METHODS, get_method

SHAPE = (12, 8)


@pytest.mark.parametrize(
    ("name", "capacity", "options", "acts"),
    [
        ("lora", 3, {}, 3 * (20 - 3)),  # G B and A G^-1 are the same update
        ("dora", 3, {}, 3 * (20 - 3) + 12),
        ("peft:lora", 3, {}, 3 * (20 - 3)),
        ("peft:miss", 3, {}, 3 * 12),
        ("peft:waveft", 20, {}, 20),
        ("peft:fourierft", 20, {}, 18),  # two pairs of frequencies are conjugate, and the real part is taken
        ("peft:tinylora", 4, {}, 4),
        ("peft:tinylora", 9, {"r": 2}, 4),  # u beyond r^2
        ("peft:boft", 4, {}, 8 * 3 // 2 + 12),  # whole matrices are stored of which the skew parts act
        ("peft:oft", 4, {}, 8 * 3 // 2),
        ("peft:osf", 5, {}, 3 * (20 - 3)),  # of rank 8 - 5: AdamW leaves the space that gradients are projected on
        ("peft:ia3", 1, {}, 12),
        ("peft:beft", 1, {}, 12),
    ],
)
def test_the_rank_of_the_jacobian(name: str, capacity: int, options: dict[str, Any], acts: int) -> None:
    assert freedom(name, SHAPE, capacity, options) == acts


@pytest.mark.filterwarnings("ignore:RandLoRA-SVD")  # of ranks above the weight's
@pytest.mark.parametrize(
    ("name", "shape", "capacities", "options"),
    [
        ("hybrid", (32, 8), (1, 2, 3, 8), {}),
        ("hybrid", (12, 24), (1, 2, 5), {"share": 0.8}),
        ("randlora-svd", (16, 8), (5, 8, 9, 12), {}),
        ("randlora-svd", (8, 20), (9, 16), {}),
        ("randlora-a", (12, 12), (3, 11, 12), {"r": 4}),
        ("randlora-a", (12, 12), (2, 7), {"r": 8}),
        ("randlora-a", (20, 12), (5, 12), {"r": 4}),
        ("peft:oft", (4, 12), (3, 7, 9), {"use_cayley_neumann": False}),
        ("peft:oft", (4, 12), (3, 9), {}),
    ],
)
def test_a_formula_where_parts_overlap(
    name: str, shape: tuple[int, int], capacities: tuple[int, ...], options: dict[str, Any]
) -> None:
    for capacity in capacities:
        assert get_method(name).dof(shape, capacity, **options) == freedom(name, shape, capacity, options), capacity


OPTIONS: dict[str, dict[str, Any]] = {"randlora-a": {"r": 4}, "peft:road": {"group_size": 4}, "nola": {"r": 2}}


@pytest.mark.parametrize("name", [*METHODS, *(PREFIX + kind for kind in KINDS)])
def test_a_formula_is_the_rank_of_the_jacobian(name: str) -> None:
    method, options = get_method(name), OPTIONS.get(name, {})
    for shape in ((12, 8), (8, 12)):
        most = method.max_capacity([shape], **options)
        for capacity in sorted({c for c in (method.min_capacity, 2, 3, most // 2, most) if method.min_capacity <= c}):
            stated = method.dof(shape, min(capacity, most), **options)
            found = freedom(name, shape, min(capacity, most), options)
            if stated is None:
                assert name in MEASURED
            elif method.scheduled:  # more is trained, until it is cut
                assert stated <= found
            elif name == "peft:vblora":
                assert found <= stated  # a bound
            elif name == "peft:peanut":
                continue  # an expected number
            else:
                assert stated == pytest.approx(found, abs=4 if name == "peft:fourierft" else 1), (shape, capacity)


MEASURED = {"hydralora", "peft:lokr"}


@pytest.mark.parametrize(("kind", "leaves"), [("SGD", False), ("AdamW", True)])
def test_what_osf_projects_gradients_on_is_left_by_adamw(kind: str, leaves: bool) -> None:
    """The share of the squared move of U that lies along the frozen singular vectors."""
    pytest.importorskip("peft")
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12, bias=False)).double()
    adapted = attach(model, get_method("peft:osf").config.from_options(5, {}), ["0"])
    ((_, trained),) = [(n, p) for n, p in adapted.named_parameters() if n.endswith("U_low")]
    frozen = torch.linalg.svd(model[0].weight.detach()).U[:, :5]
    start = trained.detach().clone()
    optimiser = getattr(torch.optim, kind)(adapted.parameters(), lr=0.01, weight_decay=0.0)
    x, y = (torch.randn(64, width, generator=draw, dtype=torch.float64) for width in (8, 12))
    for _ in range(20):
        optimiser.zero_grad()
        (model(x) - y).square().mean().backward()
        optimiser.step()
    move = trained.detach() - start
    share = float((frozen.T @ move).square().sum() / move.square().sum())
    assert share > 0.01 if leaves else share < 1e-9


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (12, 8), (16, 16), (16, 12)])
@pytest.mark.parametrize("r", [1, 3, 8])
def test_peanut_on_rectangles(shape: tuple[int, int], r: int) -> None:
    """Half of a ReLU's entries are positive, in expectation."""
    found = fmean(freedom("peft:peanut", shape, r, seed=seed) for seed in range(8))
    stated = degrees("peft:peanut", {"0": shape}, {"0": r})
    assert stated is not None and not stated.measured
    assert stated.count == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (12, 8)])
@pytest.mark.parametrize(("name", "options"), [("hydralora", {}), ("peft:lokr", {}), ("peft:peanut", {"depth": 1})])
def test_a_small_weight_is_measured_itself(shape: tuple[int, int], name: str, options: dict[str, Any]) -> None:
    for capacity in (2, 3):
        found = degrees(name, {"0": shape}, {"0": capacity}, options)
        assert found == Degrees(freedom(name, shape, capacity, options), measured=True)


def test_of_a_model() -> None:
    shapes = {"0.q": (12, 8), "1.q": (12, 8), "0.v": (16, 16)}
    found = degrees("lora", shapes, dict.fromkeys(shapes, 3))
    assert found == Degrees(2 * 3 * 17 + 3 * 29)
    measured = degrees("peft:lokr", shapes, dict.fromkeys(shapes, 3))
    assert measured is not None
    assert measured.measured
    for name in ("peft:lily", "peft:vblora"):  # weights share: no more than is trained
        shared = degrees(name, shapes, dict.fromkeys(shapes, 4))
        assert shared is not None
        assert shared.at_most
        assert shared.count <= get_method(name).total(shapes, 4)
    assert degrees("peft:boft", {"0": (6, 5)}, {"0": 5}, {}) == Degrees(10 + 6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("peft:randlora", {"sparse": True}),
        ("peft:randlora", {"very_sparse": True}),
        ("randlora", {"distribution": "ternary"}),
    ],
)
def test_bases_with_zeros_have_a_bound_that_is_not_reached(name: str, options: dict[str, Any]) -> None:
    """Of 24 x 32 with two rows a basis."""
    dense, sparse = (degrees(name, {"0": (24, 32)}, {"0": 2}, given) for given in ({}, options))
    assert dense == Degrees(12 * (2 + 24 - 1))
    assert sparse == Degrees(12 * (2 + 24 - 1), at_most=True)
    assert freedom(name, (24, 32), 2) == 300 >= freedom(name, (24, 32), 2, options)


def test_a_large_weights_share_is_that_of_a_small_one_trained_as_far() -> None:
    assert acting_share("lora", (768, 768), 96) == pytest.approx(1 - 2 / 32)  # rank 2 of 16, as 96 of 768
    assert acting_share("peft:miss", (3072, 768), 8) == 1.0
    assert 0.4 < acting_share("peft:boft", (768, 768), 8) < 0.8
