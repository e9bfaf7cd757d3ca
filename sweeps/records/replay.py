"""A sweep's state from its journal and from its sealed tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.errors import StoreError
from analysis.format import Row
from sweeps.records.sealing import Sealer
from sweeps.search.slots import Choice, Slot
from sweeps.search.stages import SweepState
from sweeps.spec.space import extra_from


def replay(
    state: SweepState,
    sealer: Sealer,
    events: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Row],
    retry: dict[str, int] | None = None,
) -> list[tuple[Slot, float | None]]:
    """Rebuild a sweep from its journal and from sealed rows, which stand in for a journal that was lost.

    With `retry`, failed trials count as asked and not as finished, and their attempts so far are put into it.

    Returns slots that the pruner had stopped without their row being written, and the seconds that each had trained.
    Raises StoreError: an event without what a sweep is rebuilt from.
    """
    stopped: dict[str, tuple[Slot, float | None]] = {}
    asked: dict[str, Slot] = {}
    for number, event in enumerate(events, 1):
        kind = event["ev"]
        if lacking := _lacking(event):
            raise StoreError(
                f"journal.jsonl: the event {kind!r} of line {number} has no {lacking}; restore the journal from a "
                "copy, or cut the file before that line to repeat what came after"
            )
        if kind == "ask":
            names = (event["cell_id"], event["stage"], event["slot"], event["trial_id"])
            slot = Slot.from_config(*names, event["config"], event.get("seeds"))
            asked[slot.trial_id] = state.restore(slot)
        elif kind == "report":
            known = asked.get(event["trial_id"])
            if known is not None and known.cell_id in state.cells:
                state.report(known.cell_id, known.trial_id, event["epoch"], event["values"].get("val_score"))
                if event.get("stop"):
                    stopped[known.trial_id] = known, event.get("seconds")
        elif kind == "finish":
            row = event["row"]
            stopped.pop(row["trial_id"], None)
            sealer.add(event)
            if retry is not None and row["status"] == "failed":
                retry[row["trial_id"]] = row["attempt"]
            else:
                state.finish(row)
        elif kind == "choose":
            sealer.add(event)
            if event["cell_id"] in state.cells:
                state.cells[event["cell_id"]].choice = _choice(event["row"])
    for trial_id, row in rows.items():
        cell = state.cells.get(row["cell_id"])
        if cell is not None and trial_id not in cell.rows and trial_id not in (retry or ()):
            state.restore(Slot.from_row(row))
            state.finish(row)
    state.keep_known()
    for cell_id, row in sealer.choices.items():
        cell = state.cells.get(cell_id)
        if cell is not None and cell.choice is None:
            cell.choice = _choice(row)
    return list(stopped.values())


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
