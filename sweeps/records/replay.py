"""A sweep's state from its journal and from its sealed tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    """
    stopped: dict[str, tuple[Slot, float | None]] = {}
    asked: dict[str, Slot] = {}
    for event in events:
        kind = event["ev"]
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
            stopped.pop(event["trial_id"], None)
            sealer.add(event)
            if retry is not None and event["row"]["status"] == "failed":
                retry[event["trial_id"]] = event["row"]["attempt"]
            else:
                state.finish(event["row"])
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


def _choice(row: Row) -> Choice:
    extra = extra_from(row.get("hyperparameters"))
    return Choice(row["lr"], row["mean_val"], row["n_trials"], row["n_rerun_seeds"], row["edge"], extra)
