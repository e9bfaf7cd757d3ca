"""Which cells are served first: `resources.order` and `resources.priority`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.store.rows import TrialRow
from sweeps.errors import SpecError
from sweeps.plan.plan import Plan
from sweeps.search.order import ordered, spread, tiers
from sweeps.search.stages import Slot, SweepState
from sweeps.spec.spec import SweepSpec
from tests.fakes import FakeCell, FakePlan, FakeResources, FakeSearch, fake_plan, fake_row

CELLS = tuple(
    FakeCell(method, budget, dataset=data)
    for method in ("lora", "vera")
    for budget, data in ((100, "fmnist"), (200, "dtd"), (400, "fmnist"))
)


def test_every_prefix_of_a_spread_covers_the_range() -> None:
    for count in range(40):
        order = spread(count)
        assert sorted(order) == list(range(count))
        for seen in range(2, count):
            covered = sorted(order[:seen])
            gaps = [b - a for a, b in itertools.pairwise(covered)]
            assert max(gaps) <= 2 * (count - 1) / (seen - 1) + 1


def test_the_order_of_cells() -> None:
    cells = [FakeCell(m, b) for m in ("lora", "vera") for b in (100, 200, 400, 800)] + [FakeCell("full", None)]
    assert ordered(cells, "methods") == [c.cell_id for c in cells]
    assert ordered(cells, "budgets")[:5] == ["full-None", "lora-100", "vera-100", "lora-200", "vera-200"]
    assert ordered(cells, "spread")[1:] == [f"{m}-{b}" for b in (100, 800, 200, 400) for m in ("lora", "vera")]


def test_cells_with_the_first_name_come_first_and_of_them_those_with_the_second() -> None:
    names = {"vera-400": 0, "vera-100": 1, "vera-200": 1, "lora-400": 2, "lora-100": 3, "lora-200": 3}
    assert tiers(CELLS, ["vera", "params-400"]) == names
    assert set(tiers(CELLS, []).values()) == {0}
    assert [c for c, tier in tiers(CELLS, ["dtd"]).items() if tier == 0] == ["lora-200", "vera-200"]


def test_training_sizes_and_data_in_folders_have_names_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [replace(CELLS[0], train_size="4-shot"), replace(CELLS[3], dataset=f"folder:{tmp_path / 'mine'}")]
    assert tiers(cells, ["4-shot"]) == {"lora-100": 0, "vera-100": 1}
    assert tiers(cells, ["folder:mine"]) == {"lora-100": 1, "vera-100": 0}
    assert tiers(cells, [1.0]) == {"lora-100": 1, "vera-100": 0}


def served(plan: FakePlan, workers: int, done: dict[str, tuple[Slot, TrialRow]], limit: int = 10**6) -> list[Slot]:
    """Trials in the order in which so many workers get them, each ending the oldest; `done` is the journal."""
    state = SweepState(plan.feasible, plan.spec)
    for slot, row in done.values():
        state.restore(slot)
        state.finish(row)
    running: list[Slot] = []
    order: list[Slot] = []
    while len(order) < limit:
        while len(running) < workers and (slot := state.next_slot()) is not None:
            state.start(slot)
            running.append(slot)
            order.append(slot)
        if not running:
            break
        slot = running.pop(0)
        row = fake_row(slot, val_score=-abs(slot.point.lr - 1e-3))
        done[slot.trial_id] = slot, row
        state.finish(row)
    return order


def with_priority(folder: Path, names: Sequence[str], sampler: str = "qmc") -> FakePlan:
    resources = FakeResources(order="spread", priority=tuple(names))
    return fake_plan(folder, CELLS, search=FakeSearch(sampler=sampler), resources=resources)


@pytest.mark.parametrize("sampler", ["grid", "qmc", "random"])
@pytest.mark.parametrize("workers", [1, 3, 40])
def test_priority_moves_trials_and_changes_none(tmp_path: Path, sampler: str, workers: int) -> None:
    plain = served(with_priority(tmp_path, (), sampler), workers, {})
    moved = served(with_priority(tmp_path, ("vera", "params-400"), sampler), workers, {})
    assert {(s.trial_id, s.slot, s.stage) for s in moved} == {(s.trial_id, s.slot, s.stage) for s in plain}
    assert len(moved) == len(CELLS) * (6 + 2)
    assert [s.trial_id for s in moved] != [s.trial_id for s in plain]


def test_others_wait_until_the_first_have_nothing_left_to_start(tmp_path: Path) -> None:
    order = served(with_priority(tmp_path, ("vera",)), 4, {})
    assert {s.cell_id.partition("-")[0] for s in order[: 3 * 5]} == {"vera"}  # all rates, before any re-run may start
    alone = served(with_priority(tmp_path, ("params-200", "vera")), 1, {})
    assert [c for c, _ in itertools.groupby(s.cell_id for s in alone)][:2] == ["vera-200", "lora-200"]


def test_priority_may_change_between_runs_of_a_sweep(tmp_path: Path) -> None:
    done: dict[str, tuple[Slot, TrialRow]] = {}
    parts = served(with_priority(tmp_path, ("vera",)), 2, done, limit=13)
    # the two that ran when the driver died are asked, and not finished
    parts += served(with_priority(tmp_path, ("lora", "params-100")), 2, done)
    whole = served(with_priority(tmp_path, ()), 2, {})
    assert {s.trial_id for s in parts} == {s.trial_id for s in whole} == set(done)
    assert len(done) == len(CELLS) * (6 + 2)


TREE: dict[str, Any] = {
    "name": "t",
    "model": {"id": "embedded:tiny-clip"},
    "data": {"datasets": ["embedded:fashion-mnist"], "train_size": ["4-shot", 0.5]},
    "budgets": {"lora_rank": [1, 4]},
    "methods": {"lora": {}, "randlora": {}},
}


def test_names_are_checked_and_are_no_part_of_what_a_sweep_is() -> None:
    spec = SweepSpec.parse({**TREE, "resources": {"priority": ["randlora", "lora-4", 0.5, "4-shot"]}})
    assert spec.identity() == SweepSpec.parse(TREE).identity()
    assert SweepSpec.parse({**TREE, "resources": {"priority": "lora"}}).resources.priority == ("lora",)
    with pytest.raises(SpecError) as caught:
        SweepSpec.parse({**TREE, "resources": {"priority": ["randlroa", "lora-3", 0.25]}})
    said = [str(p) for p in caught.value.problems]
    assert [s.partition(":")[0] for s in said] == [
        f"resources.priority = {n!r}" for n in ("randlroa", "lora-3", "0.25")
    ]
    assert "known: 0.5, 4-shot, embedded:fashion-mnist, lora, lora-1, lora-4, randlora" in said[0]
    assert "Nearest: randlora" in said[0]
    with pytest.raises(SpecError, match="each name may stand once"):
        SweepSpec.parse({**TREE, "resources": {"priority": ["lora", "lora"]}})


def test_a_plan_serves_named_cells_first_with_the_ids_it_had() -> None:
    plain = Plan.from_spec(SweepSpec.parse(TREE))
    first = Plan.from_spec(SweepSpec.parse({**TREE, "resources": {"priority": ["randlora", "lora-4"]}}))
    assert first.cells == plain.cells
    slot = SweepState(first.feasible, first.spec).next_slot()
    assert slot is not None
    assert slot.cell_id.startswith("randlora_lora-4")
