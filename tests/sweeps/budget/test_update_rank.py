"""The rank of the update, by cell: at one number of parameters, and from plan to table and screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sweeps import Plan, SweepSpec
from sweeps.budget.solving import update_rank
from sweeps.cli.plan import print_plan

SWEEP: dict[str, Any] = {
    "name": "ranks",
    "model": {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["attn.in_proj_weight"]},
    "data": {"datasets": ["embedded:fashion-mnist"], "train_size": [1.0]},
    "budgets": {"lora_rank": [4, 8]},
    "methods": {
        "lora": {},
        "randlora": {},
        "a-16": {"method": "randlora-a", "r": 16},
        "full": {},
        "full-targets": {},
        "linear-probe": {},
        "zero-shot": {},
    },
}


def by_cell() -> Mapping[tuple[str, str | None], dict[str, Any]]:
    rows = Plan.from_spec(SweepSpec.model_validate(SWEEP)).table().to_pylist()
    return {(row["method"], row["reference"]): row for row in rows}


def test_cells_know_the_rank_of_their_update() -> None:
    ranks = {key: row["update_rank"] for key, row in by_cell().items()}
    assert ranks == {
        ("lora", "lora-4"): 4, ("lora", "lora-8"): 8, ("randlora", "lora-4"): 192, ("randlora", "lora-8"): 192,
        ("a-16", "lora-4"): 16, ("a-16", "lora-8"): 16, ("full", None): 192, ("full-targets", None): 192,
        ("linear-probe", None): None, ("zero-shot", None): None,
    }  # fmt: skip


def test_cells_know_what_they_are_a_variant_of() -> None:
    rows = by_cell()
    assert rows["a-16", "lora-4"]["base"] == "randlora-a"
    assert rows["lora", "lora-4"]["base"] == "lora"
    assert rows["zero-shot", None]["base"] == "zero-shot"


def test_weights_of_several_shapes_have_a_mean_rank() -> None:
    shapes = {"a": (8, 4), "b": (6, 6)}
    assert update_rank("lora", shapes, {"a": 2, "b": 3}, {}) == 2.5
    assert update_rank("randlora", shapes, {"a": 2, "b": 2}, {}) == 5
    assert update_rank("full", shapes, {}, {}) == 5
    assert update_rank("hydralora", shapes, {"a": 2, "b": 2}, {}) is None


def test_the_plan_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(Plan.from_spec(SweepSpec.model_validate(SWEEP)))
    shown = capsys.readouterr().out.splitlines()
    line = next(line for line in shown if line.startswith("a-16") and "lora-8" in line)
    assert "uniform" in line and "16" in line.split()[line.split().index("uniform") + 1]
