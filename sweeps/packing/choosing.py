"""Chooses which trials form a pack: trials of one cell that a worker trains together, on one copy of the base model.

A pack holds the trials that the sweep would start next anyway, without a result of one of them in between.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeps.search.slots import Slot
from sweeps.search.stages import CellState, SweepState
from trainables.packing.alike import alike

TOGETHER = {"trainables.training.worker:run_trial": "trainables.packing.together:run_pack"}
"""Maps a trial function to the function that runs several of its trials together."""


@dataclass
class Packing:
    """Forms the packs of a sweep.

    Attributes:
        most: the largest number of trials in a pack; 1: no trials are packed.
        workers: number of workers that each run one trial, or one pack, at a time.
        limits: by cell id, the largest number of trials in a pack of cells in which a larger pack failed.
    """

    most: int
    workers: int
    limits: dict[str, int] = field(default_factory=dict)

    def next(self, state: SweepState, packs: int) -> list[Slot]:
        """Return the next trials for one worker, in the order in which they would run one by one.

        As long as workers are idle, a cell's trials are spread over them instead of packed.

        Args:
            state: the sweep.
            packs: number of packs and single trials that run now.

        Returns:
            One trial, several as a pack, or [] if all cells wait for results.
        """
        first = state.next_slot()
        if first is None:
            return []
        cell = state.cells[first.cell_id]
        most = min(self.most, self.limits.get(first.cell_id, self.most))
        if most <= 1 or not self._may_pack(cell, first):
            return [first]
        idle = max(1, self.workers - packs)
        like = alike(dict(first.config))
        slots = list(itertools.takewhile(lambda s: alike(dict(s.config)) == like, cell.peek(most * idle)))
        others = (c for c in state.awake() if c != first.cell_id and state.cells[c].next_slot() is not None)
        for_others = sum(1 for _ in itertools.islice(others, idle - 1))
        return slots[: min(most, -(-len(slots) // (idle - for_others)))]

    def _may_pack(self, cell: CellState, slot: Slot) -> bool:
        """Return whether trials such as this one may be packed."""
        if not slot.config or cell.prunable(slot):
            return False
        train = slot.config.get("train", {})
        checkpointing, held = bool(train.get("gradient_checkpointing", False)), train.get("base_weights", "fp32")
        return unpackable(slot.config["method"], slot.config.get("model"), checkpointing, held) is None

    def shrink_packs(self, cell_id: str, given_up: Mapping[str, Any]) -> None:
        """Make a cell's packs smaller after one was given up (`Lease.unpacked`)."""
        if given_up["cause"] == "memory":
            self.limits[cell_id] = min(self.limits.get(cell_id, self.most), max(1, given_up["packed"] // 2))
        elif given_up["cause"] == "refused":
            self.limits[cell_id] = 1


@functools.cache
def unpackable(
    method: str, model: str | None = None, checkpointing: bool = False, base_weights: str = "fp32"
) -> str | None:
    """Return why trials of a method are not packed; None if they may be.

    Some reasons show only once the model is loaded. Then the pack is given up, and its trials run one by one.

    Args:
        method: a name in the registry, or a method without a budget.
        model: a model id; None for any model that can be packed.
        checkpointing: `train.gradient_checkpointing`.
        base_weights: `train.base_weights`.
    """
    from randlora.methods.registry import METHODS
    from randlora.packing.dropouts import drops_activations  # loads torch
    from randlora.packing.turns import PackingError
    from trainables.models.families import ModelError
    from trainables.models.shapes import meta_model

    if method not in METHODS:
        return "adds no adapter to the base model"
    if METHODS[method].prompts:
        return "puts prompts of its own before the towers"
    if METHODS[method].holds_out:
        return "holds some rows of each batch out, other numbers in every trial"
    if METHODS[method].mixes_rows:
        return "mixes the rows of a batch, which a pack pads otherwise"
    if base_weights == "int8":
        return "has base weights in int8, whose products find outliers in the whole batch"
    if model is None:
        return None
    try:
        drops = drops_activations(meta_model(model))
    except ModelError:
        return None
    except PackingError as error:
        return f"cannot be: {error}"
    if drops and checkpointing:
        return "trains a model with dropout under train.gradient_checkpointing"
    return None
