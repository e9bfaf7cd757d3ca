"""A sweep's state from its journal and from its sealed tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.journal import JOURNAL
from sweeps.records.sealing import Sealer
from sweeps.search.slots import Choice, Slot
from sweeps.search.stages import CellState, SweepState
from sweeps.spec.cell import Cell
from sweeps.spec.space import extra_from
from trainables.errors import first_line


def replay(
    state: SweepState,
    sealer: Sealer,
    events: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Row],
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
            raise StoreError(
                f"journal.jsonl: the event {kind!r} of line {number} has no {lacking}; restore the journal from a "
                "copy, or cut the file before that line to repeat what came after"
            )
        if kind == "ask" and event["cell_id"] in state.cells:
            slot = _asked(state.cells[event["cell_id"]].cell, event, sealer.folder)
            asked[slot.trial_id] = state.restore(slot)
        elif kind == "report" and event["trial_id"] in asked:
            known = asked[event["trial_id"]]
            state.report(known.cell_id, known.trial_id, event["epoch"], event["values"].get("val_score"))
            if event.get("stop"):
                stopped[known.trial_id] = known, event.get("seconds")
        elif kind == "finish":
            row = event["row"]
            stopped.pop(row["trial_id"], None)
            sealer.add(event)
            if row["trial_id"] not in last or _attempt(row) >= _attempt(last[row["trial_id"]]):
                last[row["trial_id"]] = row
        elif kind == "choose":
            sealer.add(event)
    for trial_id, row in last.items():
        cell = state.cells.get(row["cell_id"])
        if cell is None:
            continue
        if trial_id not in asked:
            state.restore(_recalled(cell, trial_id, row, sealer.folder))
        if retry is not None and row["status"] == "failed":
            retry[trial_id] = _attempt(row)
        else:
            state.finish(row)
    state.keep_known()
    for cell_id, row in sealer.choices.items():
        if cell_id in state.cells:
            state.cells[cell_id].choice = _choice(row)
    return [found for trial_id, found in stopped.items() if last.get(trial_id, {}).get("status") != "pruned"]


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


def _recalled(cell: CellState, trial_id: str, row: Row, folder: Path) -> Slot:
    slot = cell.recall(row)
    if slot is None or slot.trial_id != trial_id:
        rule = f"is none of cell {cell.cell.cell_id}, whose rates, seeds and settings make other ids"
        raise _foreign(folder / "tables" / "trials", trial_id, rule)
    return slot


def _foreign(place: Path, trial_id: str, rule: str) -> StoreError:
    remedy = "it was edited, or is another sweep's: restore it from a copy, or give this sweep another folder"
    return StoreError(f"{place}: trial {trial_id!r} {rule}; {remedy}")


def _attempt(row: Row) -> int:
    return int(row.get("attempt") or 1)


_NEEDED: dict[str, dict[str, type]] = {
    "ask": {"cell_id": str, "stage": str, "slot": int, "trial_id": str, "config": dict},
    "report": {"trial_id": str, "epoch": int, "values": dict},
    "choose": {"cell_id": str},
}
_ROW: dict[str, dict[str, type]] = {
    "finish": {"trial_id": str, "cell_id": str, "status": str, "attempt": int},
    "choose": {"cell_id": str, "chosen_at": str},
}


def _lacking(event: Mapping[str, Any]) -> str:
    """A key that an event, or its row, has not, or not with a value of its type; "" where it has all."""
    for of, needed, what in ((event, _NEEDED, ""), (event.get("row", {}), _ROW, "row.")):
        for name, kind in needed.get(str(event["ev"]), {}).items():
            if not isinstance(of.get(name), kind):
                return f"{what}{name} ({kind.__name__})"
    return ""


def _choice(row: Row) -> Choice:
    extra = extra_from(row.get("hyperparameters"))
    return Choice(row["lr"], row["mean_val"], row["n_trials"], row["n_rerun_seeds"], row["edge"], extra)
