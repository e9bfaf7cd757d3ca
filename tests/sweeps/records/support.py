"""What the engine journals for finished trials, and a results folder made worse."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from analysis.store.journal import Finish, journal_line, read_journal
from analysis.store.remote import Location
from sweeps.engine.run import RunSummary
from sweeps.records.rows import metric_rows, prediction_row, trial_row
from sweeps.search.stages import Slot
from tests.fakes import FakeCell, FakePlan, FakeSearch, FakeTrain, analytic_trial, fake_plan
from tests.sweeps.inline import go_inline
from tests.sweeps.support import PAIR, events, rows

Harm = Callable[[Path], object]
"""What is done to a results folder."""

FRAGILE = tuple(FakeCell(cell.method, options=(("fail_above", 1e-2),)) for cell in PAIR)
"""One rate of each cell fails, until `mended_trial` runs it."""


def finish_event(seed: int, folder: Path) -> Finish:
    """What the engine journals for one CONFIRM trial."""
    cell = FakeCell("lora")
    trial = cell.trial("CONFIRM", 1e-3, (seed, seed, seed), FakeTrain())
    slot = Slot(cell.cell_id, "CONFIRM", seed, trial.trial_id, trial.model_dump(), 1e-3, (seed, seed, seed))
    events = list(analytic_trial(trial, warm={}, directory=folder / trial.trial_id))
    result = events[-1].pop("result")
    times = {"started": 1.7e9 + seed, "ended": 1.7e9 + seed + 2, "seconds_total": 2.0, "host": "here"}
    outcome = {"status": "finished", "result": result, "events": events, **times}
    metrics = tuple(metric_rows("fake", slot, outcome))
    return Finish(trial_row("fake", cell, slot, outcome), metrics, prediction_row("fake", slot, outcome))


def finish_events(tmp_path: Path, count: int) -> list[Finish]:
    for seed in range(count):
        trial = FakeCell("lora").trial("CONFIRM", 1e-3, (seed, seed, seed), FakeTrain())
        (tmp_path / "work" / trial.trial_id).mkdir(parents=True)
    return [finish_event(seed, tmp_path / "work") for seed in range(count)]


def subtree(folder: Path) -> Location:
    folder.mkdir(exist_ok=True)
    return Location(pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()), "results/a", "test://results/a")


def edit(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the journal's events, with checksums that hold."""
    found = list(read_journal(folder / "journal.jsonl").events)
    change(found)
    (folder / "journal.jsonl").write_bytes(b"".join(map(journal_line, found)))


def without(*names: str) -> Harm:
    def harm(folder: Path) -> None:
        for name in names:
            (shutil.rmtree if (folder / name).is_dir() else os.unlink)(folder / name)

    return harm


def small(folder: Path, cells: tuple[FakeCell, ...] = PAIR, **sections: Any) -> FakePlan:
    """Twelve trials: three rates, a re-run and two seeds, of two cells."""
    return fake_plan(folder, cells, search=FakeSearch(trials=4), **sections)


def assert_retried(plan: FakePlan, whole: Path, *earlier: Path) -> RunSummary:
    """Run `--retry-failed` once nothing fails any more: no other rate or seed may run than in undisturbed sweeps.

    Args:
        whole: the undisturbed sweep of this plan, whose trials have the same last rows.
        earlier: undisturbed sweeps of what was in the sweep file before; their trials may be there, and numbered so.
    """
    folder = plan.spec.folder
    summary = go_inline(plan, trial="tests.fakes:mended_trial", retry_failed=True)
    assert summary.complete
    last = {r["trial_id"]: r for r in sorted(rows(folder, "trials"), key=lambda r: r["status"] == "finished")}
    before = [r for path in earlier for r in rows(path, "trials")]
    for row in rows(whole, "trials"):
        assert last[row["trial_id"]] in [row, *(r for r in before if r["trial_id"] == row["trial_id"])]
    assert asked(folder) <= set[Any]().union(*map(asked, (whole, *earlier)))
    again = go_inline(plan, trial="tests.fakes:mended_trial", retry_failed=True)
    assert (again.complete, again.finished) == (True, 0), "the attempt that failed counts, and not the last one"
    return summary


def asked(folder: Path) -> set[tuple[str, int, float, int, int]]:
    """The trials that were begun, with their rates and seeds."""
    found = [(e["trial_id"], e["slot"], e["config"]) for e in events(folder, "ask")]
    return {(name, slot, c["lr"], c["data_seed"], c["init_seed"]) for name, slot, c in found}
