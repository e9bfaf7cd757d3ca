"""Makes a sweep's state from its journal and its sealed tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import ValidationError

from analysis.errors import StoreError
from analysis.store.codec import from_values
from analysis.store.journal import JOURNAL, Finish, choice_of, read_journal
from analysis.store.rows import ChoiceRow, TrialRow
from analysis.store.tables import scan_parts
from sweeps.search.slots import Choice, Edge, Slot
from sweeps.search.stages import CellState, SweepState
from sweeps.spec.cell import Cell
from sweeps.spec.space import extra_from
from sweeps.spec.spec import SweepSpec
from trainables.errors import first_line


class Tables(Protocol):
    """Takes the rows of a journal: a `Sealer`, which writes them, or an object that writes nothing.

    Attributes:
        folder: the results folder.
        choices: the latest choice of each cell, by cell id.
    """

    folder: Path
    choices: dict[str, ChoiceRow]

    def add(self, finish: Finish) -> None: ...
    def add_choice(self, row: ChoiceRow) -> None: ...


class _Unwritten:
    """Tables that are not written. They hold no choices, so these are computed from the trials."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.choices: dict[str, ChoiceRow] = {}

    def add(self, finish: Finish) -> None: ...
    def add_choice(self, row: ChoiceRow) -> None: ...


def stored_state(cells: Iterable[Cell], spec: SweepSpec, *, retry_failed: bool = False) -> SweepState:
    """Return the state that a run of these cells would begin with, from the sweep's results folder. Write nothing.

    Args:
        cells: the cells.
        spec: the sweep.
        retry_failed: whether failed trials count as still to run.

    Raises:
        StoreError: as `replay`.
    """
    state = SweepState(cells, spec)
    sealed, _ = scan_parts(spec.folder, TrialRow.table)
    rows = [from_values(TrialRow, values) for values in sealed.to_pylist()]
    last = {row.trial_id: row for row in sorted(rows, key=lambda row: row.attempt)}
    events = read_journal(spec.folder / JOURNAL).events
    replay(state, _Unwritten(spec.folder), events, last, {} if retry_failed else None)
    return state


def replay(
    state: SweepState,
    sealer: Tables,
    events: Sequence[Mapping[str, Any]],
    rows: Mapping[str, TrialRow],
    retry: dict[str, int] | None = None,
    curves: Mapping[str, Mapping[int, float | None]] | None = None,
) -> list[tuple[Slot, float | None]]:
    """Put all trials of a journal into the state of a sweep, and those of sealed rows in case the journal was lost.

    Neither the clock nor the order of lines matters: the last attempt of a trial counts, and the latest choice of a
    cell.

    Args:
        state: the state to fill.
        sealer: takes the rows of the journal.
        events: the journal's events.
        rows: sealed rows of `trials`, by trial id.
        retry: None, or a dictionary that gets the number of attempts of each failed trial, by trial id. Failed trials
            then count as still to run.
        curves: sealed validation scores by epoch, by trial id. The pruner needs those of trials that the journal lacks.

    Returns:
        The slots that the pruner had stopped without a row being written, each with the seconds that it had trained.

    Raises:
        StoreError: an event lacks a key, or a trial's id does not match its configuration.
    """
    stopped: dict[str, tuple[Slot, float | None]] = {}
    asked: dict[str, Slot] = {}
    last = dict(rows)
    for number, event in enumerate(events, 1):
        if missing_key := _missing_key(event):
            raise _damaged(number, event["ev"], f"has no {missing_key}")
        if event["ev"] == "ask" and event["cell_id"] in state.cells:
            slot = _slot_of_event(state.cells[event["cell_id"]].cell, event, sealer.folder)
            asked[slot.trial_id] = state.restore(slot, guess_origin="origin" not in event)
    for number, event in enumerate(events, 1):
        kind = event["ev"]
        if kind == "report" and event["trial_id"] in asked:
            slot_so_far = asked[event["trial_id"]]
            state.report(slot_so_far.cell_id, slot_so_far.trial_id, event["epoch"], event["values"].get("val_score"))
            if event.get("stop"):
                stopped[slot_so_far.trial_id] = slot_so_far, event.get("seconds")
        try:
            if kind == "finish":
                finish = Finish.of(event, state.spec.name)
                row = finish.row
                stopped.pop(row.trial_id, None)
                sealer.add(finish)
                if row.trial_id not in last or row.attempt >= last[row.trial_id].attempt:
                    last[row.trial_id] = row
            elif kind == "choose":
                sealer.add_choice(choice_of(event, state.spec.name))
        except StoreError as error:
            raise _damaged(number, kind, f"has a row that cannot be read ({error})") from error
    for trial_id, row in last.items():
        cell = state.cells.get(row.cell_id)
        if cell is None:
            continue
        if trial_id not in asked:
            state.restore(_slot_of_row(cell, trial_id, row, sealer.folder), guess_origin=False)
            for epoch, val_score in sorted((curves or {}).get(trial_id, {}).items()):
                state.report(cell.cell.cell_id, trial_id, epoch, val_score)
        if retry is not None and row.status == "failed":
            retry[trial_id] = row.attempt
        else:
            state.finish(row)
    state.keep_known()
    for cell_id, choice in sealer.choices.items():
        if cell_id in state.cells:
            state.cells[cell_id].choice = _choice(choice)
    return [
        unfinished
        for trial_id, unfinished in stopped.items()
        if trial_id not in last or last[trial_id].status != "pruned"
    ]


def _slot_of_event(cell: Cell, event: Mapping[str, Any], folder: Path) -> Slot:
    """Return the slot of an `ask` event. Check that its id is that of its configuration: folders are named by it."""
    trial_id, config = event["trial_id"], event["config"]
    try:
        computed = (cell.trial_id_of(config), config["cell_id"], config["stage"])
    except ValidationError as error:
        raise _foreign_trial(folder / JOURNAL, trial_id, f"has no valid configuration ({first_line(error)})") from error
    if computed != (trial_id, event["cell_id"], event["stage"]):
        rule = f"does not match its configuration ({' '.join(computed)})"
        raise _foreign_trial(folder / JOURNAL, trial_id, rule)
    data, init, basis = event.get("seeds") or (config["data_seed"], config["init_seed"], config["basis_seed"])
    where = (event["cell_id"], event["stage"], event["slot"])
    return Slot(*where, trial_id, config, config["lr"], (data, init, basis), origin=event.get("origin"))


def _slot_of_row(cell: CellState, trial_id: str, row: TrialRow, folder: Path) -> Slot:
    """Return the slot of a sealed row. Check that its id is that of its rate, seed and settings."""
    slot = cell.recall(row)
    if slot is None or slot.trial_id != trial_id:
        rule = f"does not belong to cell {cell.cell.cell_id}: its id does not match its rate, seeds and settings"
        raise _foreign_trial(folder / "tables" / "trials", trial_id, rule)
    return slot


def _foreign_trial(place: Path, trial_id: str, rule: str) -> StoreError:
    remedy = "it was edited, or is another sweep's: restore it from a copy, or give this sweep another folder"
    return StoreError(f"{place}: trial {trial_id!r} {rule}; {remedy}")


def _damaged(number: int, kind: str, problem: str) -> StoreError:
    return StoreError(
        f"journal.jsonl: the event {kind!r} of line {number} {problem}; restore the journal from a copy, or cut the "
        "file before that line to repeat what came after"
    )


_NEEDED: dict[str, dict[str, type]] = {
    "ask": {"cell_id": str, "stage": str, "slot": int, "trial_id": str, "config": dict},
    "report": {"trial_id": str, "epoch": int, "values": dict},
}
"""The keys and types that an event needs. Rows in events are checked by their dataclasses."""


def _missing_key(event: Mapping[str, Any]) -> str:
    """Return the first key that an event lacks, or whose value has another type; "" if it has all."""
    for name, kind in _NEEDED.get(str(event["ev"]), {}).items():
        if not isinstance(event.get(name), kind):
            return f"{name} ({kind.__name__})"
    return ""


def _choice(row: ChoiceRow) -> Choice:
    edge = cast("Edge | None", row.edge)
    return Choice(row.lr, row.mean_val, row.n_trials, row.n_rerun_seeds, edge, extra_from(row.hyperparameters))
