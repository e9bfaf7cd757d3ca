"""What a sweep declares of stage CONFIRM is on record, with how many test scores there were to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.store.rows import TrialRow
from analysis.store.store import open_store
from analysis.verdict.looks import Looks, looks, margin_of
from sweeps.backends.backend import Backend, Setup
from sweeps.engine.run import run as run_sweep
from sweeps.errors import Problem, SpecError
from sweeps.records.declared import declare
from sweeps.records.journal import Journal
from sweeps.records.locks import IdentityError, check_identity, write_identity
from sweeps.search.slots import Slot
from sweeps.spec.sections import ConfirmSection
from tests.fakes import TRIAL, FakeCell, FakeConfirm, fake_plan, fake_row
from tests.sweeps.inline import go_inline
from tests.sweeps.records.support import small, without
from tests.sweeps.support import PAIR, events


def run(folder: Path, scored: int = 0, **confirm: Any) -> list[tuple[Any, ...]]:
    """A run's declaration, with so many test scores known; what the journal has then."""
    plan = fake_plan(folder, (FakeCell("lora"), FakeCell("zero-shot", None)), confirm=ConfirmSection(**confirm))
    sealed: dict[str, TrialRow] = {}
    for name, lr, count in (("lora-1000", 1e-3, scored), ("zero-shot-None", None, 1)):
        for k in range(count):
            slot = Slot(name, "CONFIRM", k, f"{name}{k}", {}, lr, (k, k, k))
            sealed[slot.trial_id] = fake_row(slot, test_score=0.5)
    with Journal(folder / "journal.jsonl") as journal:
        declare(plan.spec, journal, sealed, [cell.cell_id for cell in plan.cells])
    return [(e["seeds"], e["max_seeds"], e["margin"], e["scored"]) for e in events(folder, "declare")]


def test_it_is_written_once_and_again_where_it_changes(tmp_path: Path) -> None:
    first = ([0, 1], None, 0.01, 0)
    assert run(tmp_path, seeds=2, margin=0.01) == [first]
    assert run(tmp_path, scored=1, seeds=2, margin=0.01) == [first]  # as after an interruption
    assert run(tmp_path, scored=2, seeds=3, margin=0.01) == [first, ([0, 1, 2], None, 0.01, 2)]
    assert run(tmp_path, scored=3, seeds=3, margin=0.02)[2:] == [([0, 1, 2], None, 0.02, 3)]


def test_an_older_folder_declares_what_it_ran_once_more_is_asked(tmp_path: Path) -> None:
    assert run(tmp_path, scored=2, seeds=2) == []
    assert run(tmp_path, scored=2, seeds=4) == [([0, 1], None, None, 0), ([0, 1, 2, 3], None, None, 2)]


@pytest.mark.parametrize("lost", ["", "journal.jsonl", "tables"])
def test_scores_of_a_method_that_is_out_of_the_sweep_file_were_seen(tmp_path: Path, lost: str) -> None:
    folder = tmp_path / "r"
    go_inline(small(folder, PAIR[:1], confirm=FakeConfirm((0, 1))))
    if lost:
        without(lost)(folder)
    for cells in (PAIR[1:], PAIR, PAIR):  # as when the second stands beside the first at once
        go_inline(small(folder, cells, confirm=FakeConfirm((0, 1, 2, 3))))
        first, *later = [(e["seeds"], e["scored"]) for e in events(folder, "declare")]
        assert first == ([0, 1], 0) and later[0] == ([0, 1, 2, 3], 2)
        assert {tuple(seeds) for seeds, _ in later} == {(0, 1, 2, 3)}  # the second method joins with its cells
    found = looks(open_store(folder))["fake"]
    assert found == Looks((2, 4)) and found.level == pytest.approx(0.008)


def test_a_maximum_of_seeds_stays_as_it_was_declared(tmp_path: Path) -> None:
    def identity(**confirm: Any) -> dict[str, Any]:
        return fake_plan(tmp_path, confirm=ConfirmSection(**confirm)).spec.identity()

    write_identity(tmp_path, identity(seeds=2, max_seeds=4))
    check_identity(tmp_path, identity(seeds=4, max_seeds=4, margin=0.01))
    for changed in ({"max_seeds": 8}, {}):
        with pytest.raises(IdentityError, match=r"confirm\.max_seeds.*were made with 4"):
            check_identity(tmp_path, identity(seeds=4, **changed))


@pytest.mark.parametrize("left", ["", "[", '{"name": "other", "confirm": {"margin": 0.2}}'])
def test_the_margin_is_the_declared_one_whatever_became_of_the_file(tmp_path: Path, left: str) -> None:
    run(tmp_path, seeds=2, margin=0.01)
    if left:
        (tmp_path / "sweep.json").write_text(left)
    assert margin_of(open_store(tmp_path)) == 0.01


def test_a_run_that_is_refused_declares_nothing(tmp_path: Path) -> None:
    def no_cluster(setup: Setup) -> Backend:
        raise SpecError([Problem("--address", "10.0.0.1:6379", "no Ray cluster answers there")])

    folder = tmp_path / "r"
    go_inline(small(folder, confirm=FakeConfirm((0, 1))))
    before, cells = events(folder, "declare"), open_store(folder).table("cells")
    more = small(folder, confirm=FakeConfirm((0, 1, 2, 3)))
    with pytest.raises(SpecError, match="no Ray cluster"):
        run_sweep(more, backend=no_cluster, trial=TRIAL, progress=False)
    assert events(folder, "declare") == before and open_store(folder).table("cells").equals(cells)
    assert looks(open_store(folder))["fake"] == Looks((2,))
    go_inline(more)
    assert looks(open_store(folder))["fake"] == Looks((2, 4))
    kinds = [event["ev"] for event in open_store(folder).events()]
    assert kinds[-1 - kinds[::-1].index("declare") :][:2] == ["declare", "sweep"]  # before the first trial is asked
