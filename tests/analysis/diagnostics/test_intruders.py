"""Intruder dimensions: of matrices whose intruders are known, and of tiny trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis import StoreError, open_store
from analysis.diagnostics.analyze import analyze, plan
from analysis.diagnostics.intruders import LEADING, intruder_rows, largest_cosines
from analysis.diagnostics.units import Unit
from analysis.findings.diagnostics.figure import draw_intruders, mean_intruders
from analysis.findings.diagnostics.sheets import diagnostic_sheets
from analysis.store.tables import to_table
from tests.analysis.diagnostics.support import tiny_results

SHAPES = [(30, 17), (17, 30), (19, 19)]
"""(out, in)."""


def orthogonal(rows: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def built(out: int, width: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """A base of rank `kept` with well apart singular values, and all left and right directions."""
    u, v = orthogonal(out, 1), orthogonal(width, 2)
    values = torch.arange(kept, 0, -1, dtype=torch.float64)
    return (u[:, :kept] * values) @ v[:, :kept].T, u, v


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_known_intruders_are_found(shape: tuple[int, int]) -> None:
    """The base has 5 directions. New ones are mixed of half of the base's and others, or lie outside of it."""
    base, u, v = built(*shape, kept=5)
    torch.testing.assert_close(largest_cosines(base, torch.zeros_like(base))[:5], torch.ones(5).double())
    own = 7.0 * u[:, :1] @ v[:, :1].T  # a direction that the base has, larger
    (row,) = intruder_rows({"w": base}, {"w": own}, leading=5)
    assert (row["intruders"], row["share"], row["counted"]) == (0, 0.0, 5)

    # in the plane of the 2nd and 3rd direction: cosine sqrt(1/2) with both, so above 0.5 and below 0.8
    turned = u[:, 1:3].sum(dim=1, keepdim=True) / 2**0.5
    delta = 1e3 * turned @ v[:, 6:7].T
    assert float(largest_cosines(base, delta)[0]) == pytest.approx(0.5**0.5, abs=1e-4)
    (row,) = intruder_rows({"w": base}, {"w": delta}, leading=1)
    assert row["intruders"] == 0
    (row,) = intruder_rows({"w": base}, {"w": delta}, leading=1, threshold=0.8)
    assert (row["intruders"], row["share"]) == (1, 1.0)


def test_directions_outside_the_base_are_intruders() -> None:
    """Taller than wide, so the base's left vectors leave directions out: u_20 and u_25 of 30."""
    base, u, v = built(30, 17, kept=17)
    delta = 40.0 * u[:, 20:21] @ v[:, 16:17].T + 30.0 * u[:, 25:26] @ v[:, 15:16].T
    (row,) = intruder_rows({"w": base}, {"w": delta})
    assert (row["counted"], row["intruders"], row["share"]) == (LEADING, 2, 0.2)
    assert [value < 0.5 for value in row["cosines"][:3]] == [True, True, False]
    assert len(row["cosines"]) == 17 and row["intruders_of_all"] == 2
    (row,) = intruder_rows({"w": base}, {"w": delta}, leading=1)
    assert (row["intruders"], row["share"]) == (1, 1.0)


def test_the_count_does_not_depend_on_scale_or_sign() -> None:
    base, u, v = built(30, 17, kept=17)
    delta = 40.0 * u[:, 20:21] @ v[:, 16:17].T
    counts = {intruder_rows({"w": f * base}, {"w": f * delta})[0]["intruders"] for f in (1.0, -1.0, 1e-4, 1e4)}
    assert counts == {1}


def test_the_figure_counts_below_every_threshold() -> None:
    place = {"sweep": "made", "unit": "u", "model": "m", "dataset": "d", "train_size": "1.0", "counted": 3}
    rows = [
        place | {"method": "lora", "reference": "lora-1", "adapter_params": 4, "weight": w, "cosines": values}
        for w, values in (("a", [0.1, 0.9, 1.0, 0.0]), ("b", [0.35, 0.35, 1.0, 0.0]))  # the fourth is not counted
    ]
    rows.append(place | {"method": "full", "reference": None, "adapter_params": 9, "weight": "a", "cosines": [1.0] * 3})
    table = to_table("intruders", rows)
    found = {(r["method"], round(r["threshold"], 2)): r["intruders"] for r in mean_intruders(table)}
    assert [found["lora", at] for at in (0.05, 0.2, 0.5, 0.95)] == [0.0, 0.5, 1.5, 2.0]
    assert found["full", 1.0] == 0.0
    (axes,) = draw_intruders(table).axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert {"LoRA", "full fine-tuning"} <= set(drawn) and axes.get_title() == "lora-1"
    assert np.array_equal(drawn["LoRA"], [r["intruders"] for r in mean_intruders(table) if r["method"] == "lora"])


def nothing(folder: Path, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[dict[str, Any]]]]:
    raise AssertionError(f"computed again: {[u.label for u in units]}")


def test_trained_weights_have_a_table_a_figure_and_a_sentence(tmp_path: Path) -> None:
    store = open_store(tiny_results(tmp_path / "tiny"))
    table, paths, says = analyze(store, "intruders")
    rows = table.to_pylist()
    assert {r["method"] for r in rows} == {"lora", "randlora", "full"}
    weights = {r["weight"] for r in rows if r["method"] == "lora"}
    assert weights and {r["weight"] for r in rows if r["method"] == "full"} == weights
    for r in rows:
        assert r["intruders"] == sum(value < 0.5 for value in r["cosines"][:10]) == round(10 * r["share"])
        assert len(r["cosines"]) == min(r["out_features"], r["in_features"])
        assert all(0 <= value <= 1 for value in r["cosines"])
    assert {"intruders.svg", "intruders.png"} <= set(paths) and "LoRA at lora-2" in says
    analyze(store, "intruders", execute=nothing)
    (sheet,) = diagnostic_sheets(store)
    assert sheet.name == "diagnostic_intruders"
    assert [cells[0] for cells in sheet.cells] == ["RandLoRA", "LoRA", "full fine-tuning"]
    with pytest.raises(StoreError, match="intruders takes no examples"):
        plan(store, "intruders", examples=3)


def test_weights_that_were_not_kept_are_an_error_that_names_the_switch(tmp_path: Path) -> None:
    folder = tiny_results(tmp_path / "tiny")
    (folder / "adapters").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r'\[keep\] adapters = "confirm"'):
        plan(open_store(folder), "intruders")
