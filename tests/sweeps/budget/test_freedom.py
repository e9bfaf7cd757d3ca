"""Budgets in degrees of freedom: LoRA's r (out + in - r) of every weight, met by what a method's updates can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from randlora.adapted.freedom import degrees
from randlora.methods.bridge.freedom import FREEDOM
from randlora.methods.registry import get_method
from sweeps import Plan
from sweeps.budget import currencies, reach
from sweeps.budget.currencies import DOF
from sweeps.budget.solver import reference_budget, solve, solve_pinned
from sweeps.budget.solving import reached_by_all
from sweeps.plan.base_model import BaseModelInfo
from sweeps.spec.solution import Infeasible, Solution
from sweeps.spec.spec import SweepSpec
from tests.sweeps.budget.shapes import clip_tower
from tests.sweeps.spec.support import GOOD, write
from trainables.models.shapes import target_shapes

SHAPES = clip_tower("", 4, 192)


def test_the_reference_is_lora_without_what_cancels() -> None:
    assert reference_budget({"a": (12, 8), "b": (6, 6)}, 3, DOF) == 3 * 17 + 3 * 9
    budget = reference_budget(SHAPES, 8, DOF)
    answer = solve("lora", SHAPES, budget, currency=DOF)
    assert isinstance(answer, Solution)
    assert (answer.capacity, answer.residual) == (8, 0)
    assert answer.count == reference_budget(SHAPES, 8)


@pytest.mark.parametrize("method", ["randlora", "dora", "peft:loha", "peft:boft", "peft:osf", "peft:lily", "peft:lokr"])
@pytest.mark.parametrize("allocation", ["auto", "fill", "per-layer"])
def test_the_residual_is_of_degrees_of_freedom(method: str, allocation: str) -> None:
    budget = reference_budget(SHAPES, 1 if method == "peft:lokr" else 8, DOF)
    answer = solve(method, SHAPES, budget, allocation, currency=DOF, tolerance=None)
    assert isinstance(answer, Solution)
    found = degrees(method, SHAPES, answer.capacities)
    assert found is not None
    assert answer.residual == found.count - budget
    assert answer.count >= found.count
    if answer.above is not None:
        assert answer.above.residual > answer.residual


def test_what_cannot_be_reached_is_said_of_degrees_of_freedom(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = solve("peft:ia3", SHAPES, 10**6, currency=DOF)
    assert isinstance(answer, Infeasible)
    assert "the largest number of degrees of freedom of peft:ia3" in answer.reason
    pinned = solve_pinned("peft:loha", SHAPES, 4, 1000, currency=DOF)
    assert pinned.residual + 1000 < pinned.count
    monkeypatch.setattr(currencies, "degrees_of_one", lambda *_: None)
    reach._curves.cache_clear()
    unknown = solve("peft:peanut", SHAPES, 1000, currency=DOF)
    assert isinstance(unknown, Infeasible)
    assert "can't be measured with these options" in unknown.reason
    reach._curves.cache_clear()


def test_a_plan_labels_its_budgets_and_shows_both_numbers(tmp_path: Path) -> None:
    text = GOOD.replace("lora_rank = [1, 4]", 'lora_rank = [1, 4]\ncount = "dof"') + "[methods.hydralora]\n"
    spec = SweepSpec.load(write(tmp_path, text.replace("[data]", 'targets = ["mlp.c_fc"]\n[data]')))
    assert spec.budgets.references() == ("dof-lora-1", "dof-lora-4")
    rows = Plan.from_spec(spec).table().to_pylist()
    assert {r["reference"] for r in rows} == {"dof-lora-1", "dof-lora-4"}
    assert all(r["residual"] == r["dof"] - r["budget"] for r in rows if r["feasible"])
    assert {r["method"] for r in rows if r["dof_measured"]} <= {"hydralora"}
    lora = next(r for r in rows if r["method"] == "lora")
    assert (lora["dof"], lora["residual"]) == (lora["budget"], 0)
    assert lora["count"] > lora["dof"]
    shapes = target_shapes(spec.model.id, spec.model.targets, "both")
    assert reached_by_all(spec, shapes, BaseModelInfo(spec.model.id).method_shapes, "dof-lora-1", DOF) is None


def test_numbers_and_shares_are_labelled_too(tmp_path: Path) -> None:
    for given, label in (("params = [5000]", "dof-5000"), ("percent = [0.5]", "dof-percent-0.5")):
        text = GOOD.replace("lora_rank = [1, 4]", f'{given}\ncount = "dof"')
        assert SweepSpec.load(write(tmp_path, text)).budgets.references() == (label,)


def test_prompts_are_left_out_of_budgets_in_degrees_of_freedom_and_nothing_else_is(tmp_path: Path) -> None:
    more = '[methods."prompt:coop"]\ncapacity = 4\n[methods.several]\nmethod = "prompt:coop"\ncapacity = [2, 4]\n'
    spec = SweepSpec.load(write(tmp_path, GOOD.replace("[methods", f"{more}[methods", 1).replace(
        "lora_rank = [1, 4]", 'params = [50001]\ncount = "dof"')))  # fmt: skip
    plan = Plan.from_spec(spec)
    assert {c.method for c in plan.cells if not c.feasible} >= {"prompt:coop", "several"}
    assert "lora" in {c.method for c in plan.feasible}
    plan.reachable_budgets()


@pytest.mark.parametrize("name", sorted(FREEDOM))
def test_no_formula_is_negative_within_reach(name: str) -> None:
    method = get_method(f"peft:{name}")
    for shape in ((16, 16), (24, 8), (8, 24)):
        for capacity in range(method.min_capacity, min(method.max_capacity([(24, 24), shape]), 40) + 1):
            found = method.dof(shape, capacity)
            assert found is None or found >= 0, (shape, capacity)
