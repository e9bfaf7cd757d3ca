"""A sweep's state from its journal and from its sealed tables."""

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
    """Takes the rows that a journal has: a `Sealer`, which writes them, or what only looks on.

    Attributes:
        folder: the results folder.
        choices: each cell's latest choice.
    """

    folder: Path
    choices: dict[str, ChoiceRow]

    def add(self, finish: Finish) -> None: ...
    def add_choice(self, row: ChoiceRow) -> None: ...


class _Unwritten:
    """Writes nothing, and leaves the choices to be computed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.choices: dict[str, ChoiceRow] = {}

    def add(self, finish: Finish) -> None: ...
    def add_choice(self, row: ChoiceRow) -> None: ...


def stored_state(cells: Iterable[Cell], spec: SweepSpec, *, retry_failed: bool = False) -> SweepState:
    """Return what a run of these cells would find in the sweep's results folder. Writes nothing.

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
) -> list[tuple[Slot, float | None]]:
    """Rebuild a sweep from its journal and from sealed rows, which stand in for a journal that was lost.

    With `retry`, failed trials count as asked and not as finished, and their attempts so far are put into it.

    Neither the clock nor the order of lines decides: of a trial its last attempt counts, of a cell its latest choice.

    Returns slots that the pruner had stopped without their row being written, and the seconds that each had trained.

    Raises:
        StoreError: an event without what a sweep is rebuilt from; a trial whose id is not its configuration's.
    """
    stopped: dict[str, tuple[Slot, float | None]] = {}
    asked: dict[str, Slot] = {}
    last = dict(rows)
    for number, event in enumerate(events, 1):
        kind = event["ev"]
        if lacking := _lacking(event):
            raise _damaged(number, kind, f"has no {lacking}")
        if kind == "ask" and event["cell_id"] in state.cells:
            slot = _asked(state.cells[event["cell_id"]].cell, event, sealer.folder)
            asked[slot.trial_id] = state.restore(slot)
        elif kind == "report" and event["trial_id"] in asked:
            known = asked[event["trial_id"]]
            state.report(known.cell_id, known.trial_id, event["epoch"], event["values"].get("val_score"))
            if event.get("stop"):
                stopped[known.trial_id] = known, event.get("seconds")
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
            state.restore(_recalled(cell, trial_id, row, sealer.folder))
        if retry is not None and row.status == "failed":
            retry[trial_id] = row.attempt
        else:
            state.finish(row)
    state.keep_known()
    for cell_id, choice in sealer.choices.items():
        if cell_id in state.cells:
            state.cells[cell_id].choice = _choice(choice)
    return [found for trial_id, found in stopped.items() if trial_id not in last or last[trial_id].status != "pruned"]


def _asked(cell: Cell, event: Mapping[str, Any], folder: Path) -> Slot:
    """An asked slot, whose id must be its configuration's: folders are made and removed by that name."""
    trial_id, config = event["trial_id"], event["config"]
    try:
        true = (cell.identify(config), config["cell_id"], config["stage"])
    except ValidationError as error:
        raise _foreign(folder / JOURNAL, trial_id, f"has no valid configuration ({first_line(error)})") from error
    if true != (trial_id, event["cell_id"], event["stage"]):
        raise _foreign(folder / JOURNAL, trial_id, f"is not what its configuration says ({' '.join(true)})")
    data, init, basis = event.get("seeds") or (config["data_seed"], config["init_seed"], config["basis_seed"])
    where = (event["cell_id"], event["stage"], event["slot"])
    return Slot(*where, trial_id, config, config["lr"], (data, init, basis))


def _recalled(cell: CellState, trial_id: str, row: TrialRow, folder: Path) -> Slot:
    slot = cell.recall(row)
    if slot is None or slot.trial_id != trial_id:
        rule = f"does not belong to cell {cell.cell.cell_id}: its id does not match its rate, seeds and settings"
        raise _foreign(folder / "tables" / "trials", trial_id, rule)
    return slot


def _foreign(place: Path, trial_id: str, rule: str) -> StoreError:
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
"""What an event needs besides rows, which their dataclasses check."""


def _lacking(event: Mapping[str, Any]) -> str:
    """Return a key that an event lacks, or has with a value of another type; "" if it has all."""
    for name, kind in _NEEDED.get(str(event["ev"]), {}).items():
        if not isinstance(event.get(name), kind):
            return f"{name} ({kind.__name__})"
    return ""


def _choice(row: ChoiceRow) -> Choice:
    edge = cast("Edge | None", row.edge)
    return Choice(row.lr, row.mean_val, row.n_trials, row.n_rerun_seeds, edge, extra_from(row.hyperparameters))
