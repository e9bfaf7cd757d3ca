"""Seeds by data set and training size."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger
from sweeps.records.replay import replay
from sweeps.records.sealing import Sealer
from sweeps.search.rules import derived_seed
from sweeps.search.stages import Slot, SweepState
from tests.fakes import FakeCell, FakeConfirm, FakePlan, fake_plan
from tests.sweeps.search.support import row_of

SEEDS = ("data_seed", "init_seed", "basis_seed")


def many(folder: Path, hold: dict[str, int] | None = None) -> FakePlan:
    """Two methods at two budgets on two data sets of two sizes."""
    cells = [
        FakeCell(method, budget, cell_id=f"{method}-{budget}-{data}-{size}", dataset=data, train_size=size)
        for method in ("lora", "vera")
        for budget in (1000, 4000)
        for data in ("one", "two")
        for size in (0.5, "16-shot")
    ]
    return fake_plan(folder, cells, confirm=FakeConfirm((0, 1), hold))


def asked(state: SweepState) -> list[Slot]:
    """All slots of a sweep that runs to its end."""
    slots = []
    while (slot := state.next_slot()) is not None:
        state.start(slot)
        state.finish(row_of(slot))
        slots.append(slot)
    return slots


def trained(slot: Slot) -> tuple[int, ...]:
    return tuple(slot.config[name] for name in SEEDS)


def test_seeds_differ_between_data_sets_and_sizes_and_agree_between_methods_and_budgets(tmp_path: Path) -> None:
    plan = many(tmp_path)
    found = defaultdict(set)
    for slot in asked(SweepState(plan.feasible, plan.spec)):
        config = slot.config
        found[slot.seeds].add((config["dataset"], config["train_size"], trained(slot)))
        assert len(set(trained(slot))) == 1 and trained(slot) != slot.seeds
    assert sorted(found) == [(s, s, s) for s in (0, 1, 1_000_000, 1_000_001)]
    for at in found.values():
        assert len(at) == 4  # one for each data set and size, whatever the method and budget
        assert len({seeds for _, _, seeds in at}) == 4
    assert len({seeds for at in found.values() for _, _, seeds in at}) == 16


def test_a_seed_held_fixed_is_the_one_that_was_written(tmp_path: Path) -> None:
    plan = many(tmp_path, {"basis_seed": 7})
    slots = asked(SweepState(plan.feasible, plan.spec))
    assert {slot.config["basis_seed"] for slot in slots} == {7}
    assert len({slot.config["init_seed"] for slot in slots}) == 16


def test_seeds_do_not_depend_on_where_a_data_folder_lies() -> None:
    assert derived_seed(0, "pets", 1.0) == 305338659  # the same on every machine and in every version
    assert derived_seed(0, "pets", 0.5) != derived_seed(0, "pets", 1.0)
    for one, next_one in pairwise(derived_seed(k, "pets", "16-shot") for k in range(100)):
        assert one != next_one and 0 <= one < 2**31


def test_a_journal_gives_back_both_kinds_of_seed(tmp_path: Path) -> None:
    plan = many(tmp_path)
    state = SweepState(plan.feasible, plan.spec)
    with Journal(tmp_path / "journal.jsonl") as journal:
        ledger = Ledger(state, journal, Sealer(tmp_path), tmp_path, "none")
        for _ in range(5):
            slot = state.next_slot()
            assert slot is not None
            ledger.ask(slot)
    with Journal(tmp_path / "journal.jsonl") as journal:
        again = SweepState(plan.feasible, plan.spec)
        replay(again, Sealer(tmp_path), journal.events, {})
    for cell_id, cell in state.cells.items():
        assert {k: (s.seeds, trained(s)) for k, s in again.cells[cell_id].asked.items()} == {
            k: (s.seeds, trained(s)) for k, s in cell.asked.items()
        }
