"""The curvature of the loss at the start: against matrices that are known, and on a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from analysis import StoreError, open_store
from analysis.diagnostics.analyze import analyze, curvature_sentence, plan
from analysis.diagnostics.curvature import Curvature
from analysis.diagnostics.units import Unit
from analysis.findings.diagnostics.sheets import diagnostic_sheets
from analysis.format import Row
from analysis.store.tables import to_table
from tests.analysis.diagnostics.support import tiny_results


def start_of(
    loss: Callable[[Tensor], Tensor], rows: int, parameters: list[nn.Parameter], ratios: tuple[float, ...] = ()
) -> Curvature:
    """The curvature of a task that has this summed loss of rows, and the number of rows as its weight."""
    task: Any = SimpleNamespace(loss_sum=lambda part, _: loss(part), weight=len)
    return Curvature(task, torch.arange(rows), parameters, 4, ratios)


@pytest.mark.parametrize("ratios", [(), (16.0, 1.0)], ids=["one rate", "as LoRA+"])
@pytest.mark.parametrize("size", [5, 40])
def test_a_quadratic_loss_has_its_matrix(size: int, ratios: tuple[float, ...]) -> None:
    draw = torch.Generator().manual_seed(size)
    root = torch.randn(size, size, generator=draw)
    matrix, slope = root @ root.T / size - 0.5 * torch.eye(size), torch.randn(size, generator=draw)
    parts = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(size - 2))]

    def loss(rows: Tensor) -> Tensor:
        theta = torch.cat(parts)
        return len(rows) * (0.5 * theta @ matrix @ theta + slope @ theta)

    start = start_of(loss, 6, parts, ratios)
    gradient = matrix.sum(dim=1) + slope
    assert torch.allclose(start.gradient, gradient, atol=1e-4)
    assert start.sharpness() == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=0.05)
    step = gradient.sign()
    step[:2] *= ratios[0] if ratios else 1.0
    wanted = float((gradient @ step) / (step @ matrix @ step))
    assert start.first_rate() == (pytest.approx(wanted, rel=0.02) if wanted > 0 else None)
    assert all(torch.equal(part, torch.ones_like(part)) and part.grad is None for part in parts)


def test_a_classifier_has_the_hessian_of_autograd() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(30, 6, generator=draw), torch.randint(0, 3, (30,), generator=draw)
    weight = nn.Parameter(0.1 * torch.randn(3, 6, generator=draw))

    def mean_loss(flat: Tensor) -> Tensor:
        return cross_entropy(inputs @ flat.view(3, 6).T, labels)

    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(inputs[rows] @ weight.T, labels[rows], reduction="sum")

    start = start_of(loss, 30, [weight])
    hessian = torch.autograd.functional.hessian(mean_loss, weight.detach().reshape(-1))
    assert start.sharpness() == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=0.05)
    assert start.products >= 4


def test_negative_curvature_predicts_no_rate() -> None:
    part = nn.Parameter(torch.zeros(3))
    start = start_of(lambda rows: len(rows) * (part.sum() - (part**2).sum()), 2, [part])
    assert start.first_rate() is None
    assert start.sharpness() == pytest.approx(-2.0, rel=0.02)


def test_products_that_are_not_finite_have_no_sharpness() -> None:
    part = nn.Parameter(torch.zeros(12))
    start = start_of(lambda rows: len(rows) * (part + (1e-12 - part**2).sqrt()).sum(), 2, [part])  # NaN beside 0
    assert start.sharpness() is None


def test_a_sweep_has_a_row_a_cell_a_figure_and_a_sentence(tmp_path: Path) -> None:
    folder = tiny_results(
        tmp_path / "tiny",
        methods={
            "lora": {},
            "lora-wide": {"method": "lora", "alpha": 64},
            "full": {},
            "full-targets": {},
            "zero-shot": {},
        },
        keep={},
    )
    store = open_store(folder)
    table, paths, says = analyze(store, "curvature", examples=20)
    rows = {r["method"]: r for r in table.to_pylist()}
    assert rows.keys() == {"lora", "lora-wide", "full", "full-targets"} and {r["examples"] for r in rows.values()} == {
        20
    }
    assert all(r["sharpness"] > 0 and r["lr"] > 0 for r in rows.values())
    # alpha = 64 at rank 2 multiplies the update by 32 instead of 1: B's gradient by 32, the Hessian's corner by 32^2
    assert rows["lora"]["first_rate"] / rows["lora-wide"]["first_rate"] == pytest.approx(32, rel=0.1)
    assert rows["full-targets"]["sharpness"] < rows["full"]["sharpness"]  # of fewer weights
    assert {"curvature.svg", "curvature.png"} <= set(paths) and "Spearman" in says
    assert "diagnostic_curvature" in {sheet.name for sheet in diagnostic_sheets(store)}

    def refuse(folder: Path, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Row]]]:
        raise AssertionError("nothing is computed twice")

    again, _, _ = analyze(store, "curvature", examples=20, execute=refuse)
    assert again.equals(table)


def test_correlations_need_three_cells_with_a_prediction() -> None:
    rows = [
        {"sweep": "s", "unit": str(k), "method": "lora", "lr": 10.0**k, "sharpness": 10.0**-k, "first_rate": None}
        for k in range(3)
    ]
    assert "1 / sharpness +1.00 (3 cells)" in curvature_sentence(to_table("curvature", rows))
    assert "nothing is compared" in curvature_sentence(to_table("curvature", rows[:2]))
    equal = [row | {"lr": 1e-3} for row in rows]
    assert "nothing is compared" in curvature_sentence(to_table("curvature", equal))


def test_a_start_without_a_gradient_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tiny_results(tmp_path / "tiny", methods={"lora": {}}, keep={}))
    monkeypatch.setattr(Curvature, "_gradient_at", lambda self, _: torch.zeros(4))
    with pytest.raises(StoreError, match=r"curvature lora lora-2 .*: the gradient at the start is 0"):
        analyze(store, "curvature", examples=20)


def test_cells_that_train_nothing_of_the_model_have_no_curvature(tmp_path: Path) -> None:
    store = open_store(tiny_results(tmp_path / "tiny", methods={"zero-shot": {}}, budgets={"lora_rank": [2]}))
    with pytest.raises(StoreError, match="no confirmed cell of a method that trains weights"):
        plan(store, "curvature")
    with pytest.raises(StoreError, match="curvature takes no points"):
        plan(store, "curvature", points=3)
