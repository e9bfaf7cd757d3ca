"""Packing on the driver's side: which trials share a worker's base model, and how many of them.

A pack changes when trials run, never which: it is a prefix of what the sweep would hand out anyway, without a result of
one of them in between. What a worker does with it is in `lane_packs`; the reasons are in docs/decisions/0004.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sweeps.lanes.gpu_share import Measured, pack_that_fits
from sweeps.search.points import FIXED_SAMPLERS
from sweeps.search.stages import CellState, Slot, SweepState
from sweeps.spec.sections import TUNE_SEED
from sweeps.spec.spec import SweepSpec
from trainables.config import alike

TOGETHER = {"trainables.training.worker:run_trial": "trainables.training.packed:run_pack"}
"""Trial functions, and what runs several of their trials together."""
MOST = 8
"""Trials of a pack that "auto" takes at most."""


def prunable(spec: SweepSpec, cell: CellState, slot: Slot) -> bool:
    """Pruning compares the first trials of a cell's rates; re-runs and CONFIRM always run to the end."""
    return spec.search.pruner != "none" and slot.stage == "TUNE" and slot.seeds == cell.seeds(TUNE_SEED)


@functools.cache
def unpackable(method: str, model: str | None = None, checkpointing: bool = False) -> str | None:
    """Why trials of a method, a name of the registry or one without a budget, are not packed; None if they may be.

    What only a loaded model shows comes up when a pack starts: its trials then run one by one.

    Args:
        model: a model id; None: any that can be packed.
        checkpointing: `train.gradient_checkpointing`.
    """
    from randlora.methods.registry import METHODS
    from randlora.packing.dropouts import draws_of  # loads torch
    from randlora.packing.turns import PackingError
    from trainables.models.families import ModelError
    from trainables.models.shapes import meta_model

    if method not in METHODS:
        return "adds no adapter to the base model"
    if METHODS[method].holds_out:
        return "holds some rows of each batch out, other numbers in every trial"
    if model is None:
        return None
    try:
        drops = draws_of(meta_model(model))
    except ModelError:
        return None
    except PackingError as error:
        return f"cannot be: {error}"
    if drops and checkpointing:
        return "trains a model with dropout under train.gradient_checkpointing"
    return None


def pack_size(asked: int | Literal["auto"], measured: Measured | None, share: float = 1.0) -> int:
    """Trials of a pack at most.

    Args:
        asked: `resources.pack`. "auto": 1 on CPUs, where packing does not pay (docs/performance.md); on GPUs as many
            as fit.
        measured: a trial's peak memory on a GPU; None: there is none, or it was not measured.
        share: of the GPU, that a worker has.
    """
    if asked != "auto":
        return asked
    return 1 if measured is None else min(MOST, pack_that_fits(measured, share))


@dataclass
class Packing:
    """What the packs of a sweep may be.

    Attributes:
        most: trials of a pack; 1: none are packed.
        workers: lane workers that each run one trial, or one pack, at a time.
        limits: trials of a pack at most in cells where a larger one did not do.
    """

    most: int
    workers: int
    limits: dict[str, int]

    def next(self, state: SweepState, packs: int, left: int) -> list[Slot]:
        """The next trials for one worker, in the order in which they would run one by one; empty while all cells wait.

        As long as workers have nothing to do, a cell's trials are spread over them instead of packed.

        Args:
            packs: packs and single trials that are not over.
            left: trials at most.
        """
        first = state.next_slot()
        if first is None:
            return []
        cell = state.cells[first.cell_id]
        most = min(self.most, self.limits.get(first.cell_id, self.most), left)
        if most <= 1 or not self._may(state.spec, cell, first):
            return [first]
        idle = max(1, self.workers - packs)
        slots = self._prefix(state, cell, most * idle)
        others = _open_cells(state, first.cell_id, idle - 1)
        return slots[: min(most, -(-len(slots) // (idle - others)))]

    def _may(self, spec: SweepSpec, cell: CellState, slot: Slot) -> bool:
        if not slot.config or prunable(spec, cell, slot):
            return False
        settings = slot.config.get("train", {})
        saving = bool(settings.get("gradient_checkpointing", False))
        return unpackable(slot.config["method"], slot.config.get("model"), saving) is None

    def _prefix(self, state: SweepState, cell: CellState, most: int) -> list[Slot]:
        """The cell's next trials, up to the first that must wait for a result or differs too much."""
        fixed = state.spec.search.sampler in FIXED_SAMPLERS
        slots = open_slots(cell, most, ahead=fixed)
        first = alike(dict(slots[0].config))
        return list(itertools.takewhile(lambda s: alike(dict(s.config)) == first, slots))

    def learn(self, cell_id: str, given_up: Mapping[str, Any]) -> None:
        """Make a cell's packs smaller after one was given up (`Lease.unpacked`)."""
        if given_up["cause"] == "memory":
            self.limits[cell_id] = min(self.limits.get(cell_id, self.most), max(1, given_up["packed"] // 2))
        elif given_up["cause"] == "refused":
            self.limits[cell_id] = 1


def open_slots(cell: CellState, most: int, *, ahead: bool) -> list[Slot]:
    """A cell's next trials, up to `most`, none of which waits for a result of another. The cell is left as it is.

    Args:
        ahead: points of the search may be proposed while points before them run; else only the first trial may be one.
    """
    found: list[Slot] = []
    asked, running = cell.asked, cell.running
    cell.asked, cell.running = dict(asked), set(running)
    try:
        while len(found) < most and (slot := cell.next_slot()) is not None:
            proposed = slot.stage == "TUNE" and slot.trial_id not in asked and slot.seeds == cell.seeds(TUNE_SEED)
            if found and proposed and not ahead:
                break
            found.append(slot)
            cell.asked[slot.trial_id] = slot
            cell.running.add(slot.trial_id)
    finally:
        cell.asked, cell.running = asked, running
    return found


def _open_cells(state: SweepState, but: str, most: int) -> int:
    """How many cells have a trial to run now, one left out; counted up to `most`."""
    found = (c for c in state.awake() if c != but and state.cells[c].next_slot() is not None)
    return sum(1 for _ in itertools.islice(found, most))
