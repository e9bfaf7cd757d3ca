"""A budget may limit the memory or operations of a training step, or the bytes of a saved adapter, in a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps import Plan, SweepSpec
from sweeps.errors import SpecError
from tests.sweeps.spec.support import GOOD, write
from trainables.training.fake_steps import FakeModel

MORE = '[methods.vera]\n[methods."peft:adamss"]\n[methods.full]\n[train]\nglobal_batch_size = 16\n'
MORE += 'precision = "fp32"\n'


def planned(tmp_path: Path, budgets: str, *, more: str = MORE, datasets: str = '"embedded:fashion-mnist"') -> Plan:
    text = GOOD.replace('"embedded:fashion-mnist"', datasets)
    text = text.replace("lora_rank = [1, 4]", budgets).replace("[data]", 'adapt = "vision"\n[data]') + more
    return Plan.from_spec(SweepSpec.load(write(tmp_path, text)))


COLUMN = {"memory": "step_memory_bytes", "flops": "step_flops", "bytes": "saved_bytes"}


@pytest.mark.parametrize(
    "count", ["memory", pytest.param("flops", marks=pytest.mark.slow), pytest.param("bytes", marks=pytest.mark.slow)]
)
def test_loras_cost_at_a_rank_is_a_budget_and_every_cell_shows_all_costs(tmp_path: Path, count: str) -> None:
    rows = planned(tmp_path, f'lora_rank = [4]\ncount = "{count}"').table().to_pylist()
    lora = next(r for r in rows if r["method"] == "lora")
    assert (lora["reference"], lora["capacity"], lora["residual"]) == (f"{count}-lora-4", 4, 0)
    for row in rows:
        if row["feasible"]:
            assert all(row[column] > 0 for column in COLUMN.values())
        if row["feasible"] and row["budget"] is not None:
            assert row["residual"] == row[COLUMN[count]] - row["budget"]
            assert abs(row["residual"]) <= 0.05 * row["budget"]
    refused = next(r for r in rows if r["method"] == "peft:adamss")
    assert "peft:adamss is built from the values of the weights" in refused["reason"]
    full = next(r for r in rows if r["method"] == "full")
    assert full["step_flops"] > lora["step_flops"]


@pytest.mark.parametrize(
    ("budgets", "label", "amount"),
    [
        ('bytes = ["64 KiB"]', "bytes-64KiB", 65536),
        ('flops = ["23.5 MFLOP"]', "flops-23.5MFLOP", 23_500_000),
        ('memory = ["11 MiB"]', "memory-11MiB", 11 * 2**20),
    ],
)
def test_amounts_have_units(tmp_path: Path, budgets: str, label: str, amount: int) -> None:
    plan = planned(tmp_path, budgets, more='[train]\nglobal_batch_size = 16\nprecision = "fp32"\n')
    lora = next(cell for cell in plan.cells if cell.method == "lora")
    assert (lora.reference, lora.budget) == (label, amount)
    assert lora.solved is not None and abs(lora.solved.residual) <= 0.05 * amount


def test_more_than_any_capacity_takes_is_infeasible_with_the_nearest(tmp_path: Path) -> None:
    plan = planned(tmp_path, 'bytes = ["30 KiB", "1 GiB"]', more="")
    refused = [cell for cell in plan.cells if not cell.feasible]
    assert {cell.reference for cell in refused} >= {"bytes-1GiB"}
    for cell in refused:
        assert cell.solution is not None
        assert cell.solution.below is not None or cell.solution.above is not None


@pytest.mark.parametrize(
    ("budgets", "field", "word"),
    [
        ('memory = ["2 GeV"]', "budgets.memory", "GiB"),
        ("memory = [2]", "budgets.memory", "text"),
        ('memory = ["2"]', "budgets.memory", "MiB"),
        ('flops = ["3 GB"]', "budgets.flops", "GFLOP"),
        ('memory = ["0 MiB"]', "budgets.memory", "above 0"),
        ('bytes = ["1,5 GiB"]', "budgets.bytes", "such as"),
        ('bytes = ["24 KiB, 12 KiB"]', "budgets.bytes", "such as"),
        ('memory = ["1 GiB"]\ncount = "flops"', "budgets", "flops"),
        ('params = [5000]\ncount = "memory"', "budgets", "memory"),
        ('memory = ["1 GiB"]\nlora_rank = [4]', "budgets", "exactly one"),
        ('bytes = ["1 MiB", "1MiB"]', "budgets", "twice"),
        ('memory = ["2 MiB"]', "budgets.memory", "below the base model's own weights"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, budgets: str, field: str, word: str) -> None:
    with pytest.raises(SpecError) as refused:
        planned(tmp_path, budgets)
    (problem,) = refused.value.problems
    assert problem.field.startswith(field)
    assert word in f"{problem.rule} {problem.nearest}"


def test_costs_are_found_on_request_alone(tmp_path: Path) -> None:
    rows = planned(tmp_path, "lora_rank = [4]\ncosts = true", more="").table().to_pylist()
    assert all(row["step_flops"] > 0 for row in rows)
    rows = planned(tmp_path, "lora_rank = [4]", more="").table().to_pylist()
    assert all(row["step_flops"] is None for row in rows)


def test_no_step_is_run_to_look_for_a_budget_that_all_methods_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = '[methods."peft:adamss"]\n[train]\nglobal_batch_size = 16\nprecision = "fp32"\n'
    plan = planned(tmp_path, 'lora_rank = [4]\ncount = "memory"', more=more)
    assert "peft:adamss" in {cell.method for cell in plan.cells if not cell.feasible}
    steps: list[object] = []
    monkeypatch.setattr(FakeModel, "step", lambda self, *_, **__: steps.append(self))
    monkeypatch.setattr(FakeModel, "forward_flops", lambda self, *_: steps.append(self))
    assert plan.reachable_budgets() == {}
    assert not steps


@pytest.mark.parametrize("budgets", ['lora_rank = [4]\ncount = "memory"', 'memory = ["11 MiB"]'])
@pytest.mark.parametrize(
    ("train", "field", "nearest"),
    [("", "train.precision", "bf16"), ('precision = "fp32"\nhold_weights = true', "train.hold_weights", "false")],
)
def test_budgets_of_memory_refuse_what_they_cannot_count(
    tmp_path: Path, budgets: str, train: str, field: str, nearest: str
) -> None:
    with pytest.raises(SpecError) as refused:
        planned(tmp_path, budgets, more=f"[train]\n{train}\n")
    (problem,) = refused.value.problems
    assert problem.field == field
    assert nearest in (problem.nearest or "")


def test_a_further_data_set_changes_no_cell_of_another(tmp_path: Path) -> None:
    """A step takes more operations if there are more classes, so each data set has its own budgets and costs."""
    more = "[train]\nglobal_batch_size = 16\n"
    budgets = 'lora_rank = [4]\ncount = "flops"'
    alone = planned(tmp_path, budgets, more=more).cells
    with_more = planned(tmp_path, budgets, more=more, datasets='"embedded:fashion-mnist", "cifar100"').cells
    assert tuple(cell for cell in with_more if cell.dataset == "embedded:fashion-mnist") == alone
    assert [cell.dataset for cell in with_more] == ["embedded:fashion-mnist", "cifar100"] * 2
    for few, many in zip(with_more[::2], with_more[1::2], strict=True):
        assert few.budget is not None and many.budget is not None
        assert few.budget < many.budget


@pytest.mark.parametrize("budgets", ["lora_rank = [4]\ncosts = true", 'lora_rank = [4]\ncount = "memory"'])
def test_a_methods_own_micro_batch_size_counts(tmp_path: Path, budgets: str) -> None:
    train = '[train]\nglobal_batch_size = 16\nprecision = "fp32"\n'
    vera = "[methods.vera]\nunmatched = true\n"
    plans = [planned(tmp_path, budgets, more=vera + own + train) for own in ("", "micro_batch_size = 4\n")]
    (lora, *_, larger), (same, *_, smaller) = (plan.cells for plan in plans)
    assert (larger.method, smaller.method) == ("vera", "vera")
    assert same == lora
    assert smaller.step_memory_bytes is not None and larger.step_memory_bytes is not None
    assert smaller.step_memory_bytes < larger.step_memory_bytes
    assert smaller.budget == larger.budget and smaller.solved is not None and smaller.budget is not None
    if "memory" in budgets:
        assert smaller.solved.residual == smaller.step_memory_bytes - smaller.budget
